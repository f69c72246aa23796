// What was done to a pasted text, under the box. props.value: {"done", "text"} as JSON, or null.
const note = element.querySelector(".ss-cleaning");
watch("value", () => {
  const { done, text } = props.value ? JSON.parse(props.value) : { done: [], text: "" };
  note.hidden = done.length === 0;
  note.querySelector(".ss-cleaning-done").textContent = done.length ? `${done.join(", ")}.` : "";
  note.querySelector(".ss-cleaned").textContent = text;
});
element.querySelector(".ss-as-pasted").addEventListener("click", () => {
  const ask = element.closest(".ss-ask");
  const box = ask?.querySelector(".ss-as-is input");
  if (box && !box.checked) box.click();
  note.hidden = true;
});
