// Why an input cannot be used, under the box. props.value: {"run", "message"} as JSON, or null.
const line = element.querySelector(".ss-alert");
watch("value", () => {
  const { run, message } = props.value ? JSON.parse(props.value) : { run: null, message: "" };
  if (run !== null) line.dataset.run = run;
  line.textContent = message;
  const box = element.closest(".ss-ask")?.querySelector("textarea, input");
  box?.setAttribute("aria-invalid", message ? "true" : "false");
});
