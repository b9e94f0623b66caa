
// A server that has just started, or that many use, may be busy for seconds.
const TRIES_OF_EDITS = 12

// Labels, notes and bookmarks. An edit stays in a queue, and is sent again, until Python says that
// it has it, so that none is lost where several are made within one pass of the script.
function annotate(canvas, on, { data, setStateValue }) {
  canvas.edits = (canvas.edits ?? []).filter((edit) => edit.id > (data.noted ?? 0))
  // An import counts as one edit, the latest when it is told.
  if (data.imported && data.imported !== canvas.imported) {
    canvas.imported = data.imported
    canvas.written = [...(canvas.written ?? []), { latent: 0, field: "import", value: "", was: "" }]
  }
  const send = (tries) => {
    clearTimeout(canvas.noting)
    // Counted, since the same value sent again may not count as a change.
    canvas.edits = canvas.edits.map((edit) => ({ ...edit, sent: (edit.sent ?? 0) + 1 }))
    setStateValue("notes", canvas.edits)
    if (tries > 1) canvas.noting = setTimeout(() => canvas.edits.length && send(tries - 1), PATIENCE)
  }
  const write = (field, value, latent = shownLatent(canvas), was = null, undone = false) => {
    const id = Math.max(Date.now(), (canvas.edits.at(-1)?.id ?? 0) + 1)
    canvas.edits = [...canvas.edits, { id, latent, field, value, was, undone }]
    if (!undone) canvas.written = [...(canvas.written ?? []), { latent, field, value, was: before(field, value, was) }]
    send(TRIES_OF_EDITS)
  }
  canvas.keep = write
  on(canvas, "focusout", ({ target }) => {
    // A field that is drawn anew loses its focus, and gets it back.
    if (canvas.redrawing || !target.dataset?.note || target.readOnly || target.value === target.defaultValue) return
    const was = target.dataset.was ?? target.defaultValue
    delete target.dataset.was
    target.defaultValue = target.value
    write(target.dataset.note, wholeText(target, target.value), latentOf(canvas, target), wholeText(target, was))
  })
  on(canvas, "keydown", (event) => {
    const { target, key } = event
    if (!target.dataset?.note) return
    if (key === "Escape") {
      target.value = target.defaultValue
      delete target.dataset.was
    }
    const done = key === "Enter" && (target.matches("input") || event.ctrlKey || event.metaKey)
    if (done || key === "Escape") target.blur()
  })
  on(canvas, "click", ({ target }) => {
    const verdict = target.closest("[data-verdict]")
    if (verdict) write("verdict", verdict.dataset.verdict)
    const again = target.closest("[data-again]")
    const now = again && shown(canvas).querySelector(`[data-note="${again.dataset.again}"]:not([data-of])`)
    if (now) write(again.dataset.again, again.dataset.value, shownLatent(canvas), now.defaultValue)
    const proposed = target.closest("[data-propose]")
    const label = proposed && shown(canvas).querySelector('[data-note="label"]:not([data-of])')
    if (label && !label.readOnly) {
      label.value = proposed.dataset.propose.slice(0, label.maxLength)
      label.focus()
    }
    const star = target.closest("[data-bookmark]")
    if (!star || star.disabled) return
    const marked = star.getAttribute("aria-pressed") !== "true"
    star.setAttribute("aria-pressed", marked)
    write("bookmark", marked ? "1" : "")
  })
  on(document, "keydown", (event) => {
    const command = (event.ctrlKey || event.metaKey) && !event.shiftKey && !event.altKey
    const typing = event.composedPath()[0].matches?.("input, textarea, select, [contenteditable]")
    const last = canvas.written?.at(-1)
    if (typing || !command || event.key.toLowerCase() !== "z" || !last) return
    event.preventDefault()
    canvas.written = canvas.written.slice(0, -1)
    write(last.field, last.was, last.latent, last.field === "verdict" ? null : last.value, true)
  })
  on(document, "keydown", (event) => {
    const typing = event.composedPath()[0].matches?.("input, textarea, select, [contenteditable]")
    if (typing || event.ctrlKey || event.metaKey || event.altKey || event.shiftKey) return
    if (event.key === "b") shown(canvas).querySelector("[data-bookmark]")?.click()
    const field = { l: "label", n: "note" }[event.key]
    const input = field && shown(canvas).querySelector(`[data-note="${field}"]:not([data-of])`)
    if (!input) return
    event.preventDefault()
    input.closest("details")?.setAttribute("open", "")
    input.focus()
  })
}

// What takes an edit back.
function before(field, value, was) {
  if (field === "verdict") return (value[0] === "0" ? "+" : "0") + value.slice(1)
  return field === "bookmark" ? (value ? "" : "1") : was ?? ""
}

function shownLatent(canvas) {
  return Number(canvas.querySelector("[data-latent]")?.dataset.latent)
}

// Fields of a list say which latent they are of; all others are of the page's.
function latentOf(canvas, field) {
  return Number(field.dataset.of ?? shownLatent(canvas))
}

// What is being typed survives a new drawing of the same latent, and is written before another
// takes its place. Call this before drawing, and the result after it.
function beingTyped(canvas) {
  const field = canvas.getRootNode().activeElement
  const name = field?.dataset?.note
  if (!name) return null
  const latent = latentOf(canvas, field)
  const of = field.dataset.of === undefined ? "" : `[data-of="${latent}"]`
  const { value, selectionStart, selectionEnd } = field
  const changed = value !== field.defaultValue
  const was = field.dataset.was ?? field.defaultValue
  canvas.redrawing = true
  return () => {
    canvas.redrawing = false
    const again = shown(canvas).querySelector(`[data-note="${name}"]${of}`)
    const same = again && latentOf(canvas, again) === latent
    if (changed && !same) canvas.keep(name, wholeText(field, value), latent, wholeText(field, was))
    if (!same) return
    // What stood there when the typing began, so that another's words are noticed.
    if (changed) again.dataset.was = was
    again.closest("details")?.setAttribute("open", "")
    if (changed) again.value = value
    again.focus()
    again.setSelectionRange(selectionStart, selectionEnd)
  }
}
