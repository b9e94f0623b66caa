
// Labels, notes and bookmarks. An edit stays in a queue until Python says that it has it, so that
// none is lost where several are made within one pass of the script.
function annotate(canvas, on, { data, setStateValue }) {
  canvas.edits = (canvas.edits ?? []).filter((edit) => edit.id > (data.noted ?? 0))
  const write = (field, value, latent = shownLatent(canvas)) => {
    const id = Math.max(Date.now(), (canvas.edits.at(-1)?.id ?? 0) + 1)
    canvas.edits = [...canvas.edits, { id, latent, field, value }]
    setStateValue("notes", canvas.edits)
  }
  canvas.keep = write
  on(canvas, "focusout", ({ target }) => {
    // A field that is drawn anew loses its focus, and gets it back.
    if (canvas.redrawing || !target.dataset?.note || target.readOnly || target.value === target.defaultValue) return
    target.defaultValue = target.value
    write(target.dataset.note, target.value)
  })
  on(canvas, "keydown", (event) => {
    const { target, key } = event
    if (!target.dataset?.note) return
    if (key === "Escape") target.value = target.defaultValue
    const done = key === "Enter" && (target.matches("input") || event.ctrlKey || event.metaKey)
    if (done || key === "Escape") target.blur()
  })
  on(canvas, "click", ({ target }) => {
    const star = target.closest("[data-bookmark]")
    if (!star || star.disabled) return
    const marked = star.getAttribute("aria-pressed") !== "true"
    star.setAttribute("aria-pressed", marked)
    write("bookmark", marked ? "1" : "")
  })
  on(document, "keydown", (event) => {
    const typing = event.composedPath()[0].matches?.("input, textarea, select, [contenteditable]")
    if (typing || event.ctrlKey || event.metaKey || event.altKey || event.shiftKey) return
    if (event.key === "b") canvas.querySelector("[data-bookmark]")?.click()
    const field = { l: "label", n: "note" }[event.key]
    const input = field && canvas.querySelector(`[data-note="${field}"]`)
    if (!input) return
    event.preventDefault()
    input.closest("details")?.setAttribute("open", "")
    input.focus()
  })
}

function shownLatent(canvas) {
  return Number(canvas.querySelector("[data-latent]")?.dataset.latent)
}

// What is being typed survives a new drawing of the same latent, and is written before another
// takes its place. Call this before drawing, and the result after it.
function beingTyped(canvas) {
  const field = canvas.getRootNode().activeElement
  const name = field?.dataset?.note
  if (!name || field.value === field.defaultValue) return null
  const latent = shownLatent(canvas)
  const { value, selectionStart, selectionEnd } = field
  canvas.redrawing = true
  return () => {
    canvas.redrawing = false
    const again = canvas.querySelector(`[data-note="${name}"]`)
    if (!again || shownLatent(canvas) !== latent) return canvas.keep(name, value, latent)
    again.closest("details")?.setAttribute("open", "")
    again.value = value
    again.focus()
    again.setSelectionRange(selectionStart, selectionEnd)
  }
}
