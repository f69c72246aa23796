// Opens and closes the row of options behind it. Not gradio's accordion, which takes what it hides off the page: values
// that are set from elsewhere would be lost.
const toggle = element.querySelector(".ss-toggle");
toggle.addEventListener("click", () => {
  const isOpen = element.closest(".ss-options-box").classList.toggle("ss-open");
  toggle.setAttribute("aria-expanded", String(isOpen));
});
