// Turning from latent to latent, by the keys J and K, by a number after G, and by links: the page is
// fetched and shown at once, and Python is told once the reader rests; it then draws the same page
// and makes it the address.

const REST = 300
const PATIENCE = 1500
const TRIES = 3
const AROUND = [1, -1, 2, -2, 3]
// The nearest of them are laid out, too; all would keep a reader waiting who leaves at once.
const LAID_OUT = 2
const GO_TO = 'input[aria-label="Go to latent"]'
const NUMBER = /^[0-9]{1,9}$/

function turnPages(canvas, on) {
  const by = (step) => {
    const page = canvas.querySelector("[data-latent]")
    if (!page) return
    const now = wanted(canvas) ?? Number(page.dataset.latent)
    // Where only chosen latents have features, the next of them.
    const numbers = page.dataset.numbers?.split(" ").map(Number)
    turn(canvas, numbers ? numbers[numbers.indexOf(now) + step] : now + step)
  }
  on(document, "keydown", (event) => {
    const target = event.composedPath()[0]
    const plain = !(event.ctrlKey || event.metaKey || event.altKey || event.shiftKey)
    if (target.matches?.(GO_TO)) typed(canvas, event)
    if (!plain || target.matches?.("input, textarea, select, [contenteditable]")) return
    if (event.key === "j") by(1)
    if (event.key === "k") by(-1)
    if (event.key === "g") goToField(event)
  }, { capture: true })
  // Streamlit's buttons do the same by a pass of the whole script.
  on(document, "click", (event) => {
    const button = event.target.closest?.(".st-key-controls button")
    const step = { "st-key-next": 1, "st-key-previous": -1 }[stepper(button)]
    if (button && !step) forget(canvas)
    if (!step || button.disabled) return
    event.stopImmediatePropagation()
    by(step)
  }, { capture: true })
  on(window, "popstate", () => {
    forget(canvas)
    const address = new URLSearchParams(window.location.search)
    // Python may be asked for what it drew last, and then has nothing new to say.
    const latent = (address.get("view") ?? "latent") === "latent" ? address.get("latent") : null
    if (latent !== null && NUMBER.test(latent)) turn(canvas, Number(latent), null)
  })
  // What is typed or pointed at is likely to be asked for.
  on(document, "input", (event) => {
    const text = event.target.matches?.(GO_TO) ? event.target.value.trim() : ""
    clearTimeout(canvas.guessing)
    if (NUMBER.test(text)) canvas.guessing = setTimeout(() => guess(canvas, Number(text)), 30)
  })
  on(canvas, "pointerover", (event) => {
    const link = event.target.closest?.("a[href^='?']")
    const latent = link ? otherLatent(canvas, link.getAttribute("href")) : null
    if (latent !== null) guess(canvas, latent)
  })
}

function stepper(button) {
  return ["st-key-next", "st-key-previous"].find((name) => button?.closest(`.${name}`))
}

// Something else leads on from here.
function forget(canvas) {
  canvas.wanted = null
  clearTimeout(canvas.telling)
}

// Shows `latent` now if it is at hand, else as soon as it was fetched and is still wanted. Python is
// told after `rest` milliseconds; null: somebody else tells it.
function turn(canvas, latent, rest = REST) {
  const page = canvas.querySelector("[data-latent]")
  if (!(latent >= 0 && latent < Number(page?.dataset.latents))) return false
  canvas.wanted = { latent, time: performance.now() }
  clearTimeout(canvas.telling)
  canvas.telling = setTimeout(tell, rest ?? PATIENCE, canvas, latent, TRIES)
  pageOf(canvas, latent).then((html) => {
    if (html === null || canvas.wanted?.latent !== latent) return
    draw(canvas, html)
    fetchAround(canvas, latent)
  })
  return true
}

// A pass that was under way for something else may swallow the message, so it is sent until Python
// answers.
function tell(canvas, latent, tries) {
  canvas.go(`?${addressOf(latent)}`)
  if (tries > 1) canvas.telling = setTimeout(tell, PATIENCE, canvas, latent, tries - 1)
}

function guess(canvas, latent) {
  const page = canvas.querySelector("[data-latent]")
  if (latent < Number(page?.dataset.latents)) pageOf(canvas, latent).then((html) => layOut(canvas, html, soon))
}

// The latent last asked for, as long as its answer may still be on the way; else null.
function wanted(canvas) {
  const asked = canvas.wanted
  return asked && performance.now() - asked.time < PATIENCE * TRIES ? asked.latent : null
}

function addressOf(latent) {
  const address = new URLSearchParams(window.location.search)
  address.set("latent", latent)
  return address.toString()
}

// The page of a latent, fetched once; null where the server has no such route.
function pageOf(canvas, latent) {
  const address = addressOf(latent)
  const { pages } = canvas
  if (!pages.has(address)) {
    if (pages.size > 40) pages.delete(pages.keys().next().value)
    const answer = fetch(`${beside("latent")}?${address}`).then((found) => (found.ok ? found.text() : null))
    pages.set(address, answer.catch(() => null))
  }
  return pages.get(address)
}

async function fetchAround(canvas, latent) {
  const page = canvas.querySelector("[data-latent]")
  if (page?.dataset.numbers) return
  const last = Number(page?.dataset.latents) - 1
  for (const [i, step] of AROUND.entries()) {
    if (latent + step < 0 || latent + step > last) continue
    const html = await pageOf(canvas, latent + step)
    // The reader has moved on, and so has what lies around.
    const left = () => !canvas.isConnected || (canvas.wanted?.latent ?? latent) !== latent
    if (left()) return
    if (i < LAID_OUT) await layOut(canvas, html)
    if (left()) return
  }
}

// Streamlit tells Python what was typed.
function typed(canvas, event) {
  const field = event.composedPath()[0]
  const text = field.value.trim()
  if (event.key !== "Enter" || !NUMBER.test(text)) return
  turn(canvas, Number(text), null)
  // The next key is for the latent, not for the field; Streamlit has yet to see this one.
  setTimeout(() => field.blur())
}

// A link that changes the latent alone is turned to; any other is for Python.
function otherLatent(canvas, href) {
  const page = canvas.querySelector("[data-latent]")
  const asked = new URLSearchParams(href)
  if (!page || !asked.has("latent")) return null
  const latent = asked.get("latent")
  asked.sort()
  const same = new URLSearchParams(addressOf(latent))
  same.sort()
  return asked.toString() === same.toString() ? Number(latent) : null
}

function goToField(event) {
  const field = document.querySelector(GO_TO)
  if (!field) return
  event.preventDefault()
  field.focus()
  field.select()
}
