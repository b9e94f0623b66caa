// Named lists of latents. An entry is an edit as a label is: its list, its place, and a comment.

function listLatents(canvas, on) {
  on(canvas, "click", ({ target }) => {
    const button = target.closest("[data-entry]")
    if (button) canvas.keep("list", button.dataset.entry, Number(button.dataset.of), button.dataset.was)
    if (target.closest("[data-put]")) putOnList(canvas)
  })
  on(canvas, "keydown", (event) => {
    const box = event.target.closest?.(".put")
    if (!box || (event.key !== "Enter" && event.key !== "Escape") || event.target.matches("button")) return
    event.preventDefault()
    event.target.blur()
    if (event.key === "Enter") putOnList(canvas)
    else box.closest("details").removeAttribute("open")
  })
  // Drawn anew, the fields would be empty: the last list is likely to be the next one's, too.
  on(canvas, "toggle", ({ target }) => {
    const field = target.open && target.querySelector?.("[data-list-name]")
    if (field && !field.value) field.value = lastList()
  }, { capture: true })
  on(document, "keydown", (event) => {
    const typing = event.composedPath()[0].matches?.("input, textarea, select, [contenteditable]")
    if (typing || event.ctrlKey || event.metaKey || event.altKey || event.shiftKey || event.key !== "a") return
    const field = shown(canvas).querySelector("[data-list-name]")
    if (!field) return
    event.preventDefault()
    field.closest("details").setAttribute("open", "")
    field.value ||= lastList()
    field.focus()
    field.select()
  })
  on(document, PUT, ({ detail }) => { if (canvas.querySelector("[data-latent]")) putOnList(canvas, detail) })
}

const PUT = "saelab-put-on-list"
const LAST_LIST = "saelab-list"

// Puts the shown latent on the list that is typed, or on the named one.
function putOnList(canvas, named = null) {
  const box = shown(canvas).querySelector(".put")
  const name = (named ?? box?.querySelector("[data-list-name]").value ?? "").trim()
  if (!box || !name) return
  const there = [...shown(canvas).querySelectorAll("[data-on]")].find((row) => row.dataset.on === name)
  const field = box.querySelector("[data-list-comment]")
  const [, , ...before] = (there?.dataset.was ?? "").split("\n")
  const comment = field.value.trim() || before.join("\n")
  canvas.keep("list", `${name}\n+${comment && `\n${comment}`}`, shownLatent(canvas), there?.dataset.was ?? name)
  field.value = ""
  lastList(name)
}

function lastList(name = null) {
  try {
    if (name !== null) sessionStorage.setItem(LAST_LIST, name)
    return sessionStorage.getItem(LAST_LIST) ?? ""
  } catch { return "" }
}

// A field of a list holds the comment alone; what is written begins with the list and the place.
function wholeText(field, text) {
  return field.dataset.list === undefined ? text : `${field.dataset.list}${text && `\n${text}`}`
}
