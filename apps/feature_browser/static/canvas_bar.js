// The bar: keys that work on every page, the palette, the help, and the state of the model.

const MODEL_EVERY = 1000

function commandBar(canvas, on) {
  if (!canvas.querySelector(".who")) return
  watchModel(canvas)
  palette(canvas, on)
  const open = (name) => {
    const dialog = canvas.querySelector(`dialog.${name}`)
    if (!dialog.open) dialog.showModal()
    if (name === "palette") find(canvas, dialog)
  }
  on(canvas, "click", (event) => {
    const button = event.target.closest("[data-open]")
    if (button) open(button.dataset.open)
    // A click beside a dialog's box is on the dialog itself.
    if (event.target.matches("dialog")) event.target.close()
  })
  on(document, "keydown", (event) => {
    const command = event.ctrlKey || event.metaKey
    if (command && !event.altKey && event.key.toLowerCase() === "k") {
      event.preventDefault()
      event.stopPropagation()
      return open("palette")
    }
    const typing = event.composedPath()[0].matches?.("input, textarea, select, [contenteditable]")
    // Some keyboards have the brackets behind AltGr, which counts as Ctrl and Alt.
    const plain = event.getModifierState("AltGraph") || !(command || event.altKey)
    if (typing || !plain || canvas.querySelector("dialog[open]")) return
    if (event.key === "/" || event.key === "?") {
      event.preventDefault()
      open(event.key === "/" ? "palette" : "help")
    }
    if (event.key === "[" || event.key === "]") {
      canvas.querySelector(`[data-key="${event.key}"]`)?.click()
    }
  }, { capture: true })
}

function palette(canvas, on) {
  const dialog = canvas.querySelector("dialog.palette")
  const field = dialog.querySelector("input")
  on(field, "input", () => {
    clearTimeout(canvas.finding)
    canvas.finding = setTimeout(find, 80, canvas, dialog)
  })
  on(field, "keydown", (event) => {
    const rows = [...dialog.querySelectorAll("[role=option]")]
    const at = rows.findIndex((row) => row.getAttribute("aria-selected") === "true")
    const by = { ArrowDown: 1, ArrowUp: -1 }[event.key]
    if (by && rows.length) {
      event.preventDefault()
      choose(dialog, rows[(at + by + rows.length) % rows.length])
    }
    if (event.key === "Enter") {
      event.preventDefault()
      // What was typed last may not have been looked for yet.
      clearTimeout(canvas.finding)
      find(canvas, dialog).then(() => dialog.querySelector("[aria-selected=true]")?.click())
    }
  })
  on(dialog, "click", (event) => {
    const row = event.target.closest("a")
    if (row) dialog.close()
    if (row?.dataset.put === undefined) return
    event.preventDefault()
    document.dispatchEvent(new CustomEvent(PUT, { detail: row.dataset.put }))
  })
}

function choose(dialog, row) {
  for (const each of dialog.querySelectorAll("[role=option]")) each.setAttribute("aria-selected", each === row)
  dialog.querySelector("input").setAttribute("aria-activedescendant", row.id)
  row.scrollIntoView({ block: "nearest" })
}

async function find(canvas, dialog) {
  const field = dialog.querySelector("input")
  const asked = new URLSearchParams({ run: dialog.dataset.run, q: field.value, latent: latentInHand() })
  if (dialog.asked === asked.toString()) return
  const answer = await fetch(`${beside("find")}?${asked}`).then((found) => found.ok ? found.json() : [], () => [])
  // An answer to what stood there before comes too late.
  if (field.value !== asked.get("q")) return
  dialog.asked = asked.toString()
  const list = dialog.querySelector("ul")
  const chosen = field.value
  list.replaceChildren(...answer.map(found))
  if (answer.length) choose(dialog, list.querySelector("a"))
  else list.append(Object.assign(document.createElement("li"), { className: "sub", role: "none", textContent: chosen ? "nothing found" : "" }))
}

// The latent that the page shows, if it is one latent's.
function latentInHand() {
  const address = new URLSearchParams(window.location.search)
  return (address.get("view") ?? "latent") === "latent" ? address.get("latent") ?? "" : ""
}

function found({ kind, title, about, href, put }, i) {
  const row = document.createElement("li")
  row.setAttribute("role", "none")
  const link = document.createElement("a")
  link.id = `found-${i}`
  link.setAttribute("role", "option")
  link.href = href || "#"
  if (put) link.dataset.put = put
  link.tabIndex = -1
  for (const [name, text] of [["em", kind], ["b", title], ["span", about]]) {
    const part = document.createElement(name)
    part.textContent = text
    part.title = text
    part.dir = "auto"
    link.append(part)
  }
  row.append(link)
  return row
}

function watchModel(canvas) {
  const chip = canvas.querySelector("[data-model]")
  clearTimeout(canvas.watching)
  if (chip?.dataset.model !== "loading" && chip?.dataset.model !== "starting") return
  canvas.watching = setTimeout(async () => {
    const asked = new URLSearchParams({ run: chip.dataset.run })
    const answer = await fetch(`${beside("model")}?${asked}`).then((found) => found.json(), () => null)
    if (answer) {
      chip.dataset.model = answer.state
      chip.title = answer.says
      chip.querySelector("b").textContent = answer.state
    }
    if (canvas.isConnected) watchModel(canvas)
  }, MODEL_EVERY)
}

// The address of a route of the server.
function beside(route) {
  return window.location.pathname.replace(/[^/]*$/, route)
}
