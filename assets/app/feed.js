// Where payloads arrive: props.value is one, a JSON string. It hands each on to the race and draws nothing itself, as
// gradio copies, compares and renders whatever a component holds, its script too, for every new value.
const tell = () => props.value && document.dispatchEvent(new CustomEvent("ss-payload", { detail: props.value }));
watch("value", tell);
document.addEventListener("ss-ready", tell); // the race, if it loads later
tell();
