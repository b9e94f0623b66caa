// Shows HTML that Python has escaped, and adds what HTML alone cannot do: links that do not reload
// the page, tooltips, a range brushed on the histogram, the keys J, K, G and Copy, and turning to
// another latent without a pass of the script.

export default function (component) {
  const { parentElement, data, setTriggerValue } = component
  const canvas = parentElement.querySelector(".canvas")
  // Streamlit may render old data again; a page that was turned to must survive that.
  if (canvas.received !== data.html) receive(canvas, data)
  // This runs at every rendering, the returned function only when the canvas goes away.
  canvas.stop?.abort()
  const stop = new AbortController()
  canvas.stop = stop
  canvas.go = (href) => setTriggerValue("go", href)
  const on = (target, name, action, options) =>
    target.addEventListener(name, action, { signal: stop.signal, ...options })
  if (data.latent !== null) turnPages(canvas, on)
  followLinks(canvas, on)
  showTips(canvas, on)
  brush(canvas, on)
  lightEdges(canvas, on)
  annotate(canvas, on, component)
  return () => {
    stop.abort()
    clearTimeout(canvas.telling)
    clearTimeout(canvas.guessing)
  }
}

function receive(canvas, data) {
  canvas.received = data.html
  // What Python says is newer than what was fetched before.
  canvas.pages = new Map()
  const awaited = wanted(canvas)
  // An answer to what the reader has left since.
  if (data.latent !== null && awaited !== null && awaited !== data.latent) return
  forget(canvas)
  draw(canvas, data.html)
  if (data.latent !== null) fetchAround(canvas, data.latent)
}

function draw(canvas, html) {
  if (canvas.shown === html) return
  const resume = beingTyped(canvas)
  canvas.innerHTML = html
  canvas.shown = html
  resume?.()
}

// Turning from latent to latent: the page is fetched and shown at once, and Python is told once the
// reader rests; it then draws the same page and makes it the address.
const REST = 150
const PATIENCE = 1500
const TRIES = 3
const AROUND = [1, -1, 2, -2, 3]
const GO_TO = 'input[aria-label="Go to latent"]'
const NUMBER = /^[0-9]{1,9}$/

function turnPages(canvas, on) {
  const by = (step) => {
    const shown = canvas.querySelector("[data-latent]")
    if (shown) turn(canvas, (wanted(canvas) ?? Number(shown.dataset.latent)) + step)
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
  if (latent < Number(page?.dataset.latents)) pageOf(canvas, latent)
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
    const path = window.location.pathname.replace(/[^/]*$/, "latent")
    const answer = fetch(`${path}?${address}`).then((found) => (found.ok ? found.text() : null))
    pages.set(address, answer.catch(() => null))
  }
  return pages.get(address)
}

async function fetchAround(canvas, latent) {
  const last = Number(canvas.querySelector("[data-latent]")?.dataset.latents) - 1
  for (const step of AROUND) {
    if (latent + step < 0 || latent + step > last) continue
    await pageOf(canvas, latent + step)
    // The reader has moved on, and so has what lies around.
    if (!canvas.isConnected || (canvas.wanted?.latent ?? latent) !== latent) return
  }
}

// Streamlit tells Python what was typed.
function typed(canvas, event) {
  const text = event.composedPath()[0].value.trim()
  if (event.key === "Enter" && NUMBER.test(text)) turn(canvas, Number(text), null)
}

// A link that changes the latent alone is turned to; any other is for Python.
function otherLatent(canvas, href) {
  const shown = canvas.querySelector("[data-latent]")
  const asked = new URLSearchParams(href)
  if (!shown || !asked.has("latent")) return null
  const latent = asked.get("latent")
  asked.sort()
  const same = new URLSearchParams(addressOf(latent))
  same.sort()
  return asked.toString() === same.toString() ? Number(latent) : null
}

function followLinks(canvas, on) {
  on(canvas, "click", (event) => {
    const copy = event.target.closest("[data-copy]")
    if (copy) copyText(copy)
    const change = event.target.closest("[data-set]")
    if (change) canvas.go(changed(change.dataset.set))
    const link = event.target.closest("a[href^='?']")
    const elsewhere = event.ctrlKey || event.metaKey || event.shiftKey || event.button !== 0
    if (!link || elsewhere) return
    event.preventDefault()
    const href = link.getAttribute("href")
    const latent = otherLatent(canvas, href)
    if (latent !== null && turn(canvas, latent, 0)) return
    forget(canvas)
    canvas.go(href)
  })
}

// The address with some of its parameters set, or taken out if set to nothing.
function changed(parameters) {
  const address = new URLSearchParams(window.location.search)
  for (const [name, value] of new URLSearchParams(parameters)) {
    if (value) address.set(name, value)
    else address.delete(name)
  }
  return `?${address}`
}

function copyText(button) {
  const done = (word) => { button.textContent = word }
  navigator.clipboard.writeText(button.dataset.copy).then(() => done("Copied"), () => done("Not allowed"))
}

function goToField(event) {
  const field = document.querySelector(GO_TO)
  if (!field) return
  event.preventDefault()
  field.focus()
  field.select()
}

function showTips(canvas, on) {
  let tip = null
  const hide = () => { tip?.remove(); tip = null; mark(canvas, null) }
  on(canvas, "pointerover", (event) => {
    hide()
    const target = event.target.closest?.("[data-tip]")
    if (!target) return
    tip = document.createElement("div")
    tip.className = "tip"
    tip.textContent = target.dataset.tip
    canvas.append(tip)
    const box = target.getBoundingClientRect()
    const left = Math.min(box.left, window.innerWidth - tip.offsetWidth - 12)
    const below = box.bottom + tip.offsetHeight + 12 < window.innerHeight
    tip.style.left = `${Math.max(8, left)}px`
    tip.style.top = `${below ? box.bottom + 6 : box.top - tip.offsetHeight - 6}px`
    if (target.dataset.v) mark(canvas, Number(target.dataset.v))
  })
  on(canvas, "pointerleave", hide)
  on(document, "scroll", hide)
}

// A line on the histogram at the activation under the pointer; none for null.
function mark(canvas, value) {
  const svg = canvas.querySelector(".histogram")
  if (!svg) return
  const marker = svg.querySelector(".marker")
  marker.style.visibility = value === null ? "hidden" : "visible"
  if (value === null) return
  const { low, high, left, right } = frame(svg)
  const x = left + ((value - low) / (high - low)) * (right - left)
  marker.setAttribute("x1", x)
  marker.setAttribute("x2", x)
}

function frame(svg) {
  const { low, high, left, right } = svg.dataset
  return { low: Number(low), high: Number(high), left: Number(left), right: Number(right) }
}

function brush(canvas, on) {
  let svg = null
  let start = 0
  const place = (event) => {
    const { left, right } = frame(svg)
    const box = svg.getBoundingClientRect()
    const x = ((event.clientX - box.left) / box.width) * svg.viewBox.baseVal.width
    return Math.min(right, Math.max(left, x))
  }
  const value = (x) => {
    const { low, high, left, right } = frame(svg)
    return low + ((x - left) / (right - left)) * (high - low)
  }
  const select = (from, to) => {
    const area = svg.querySelector(".brush")
    const any = to - from >= 3
    area.style.visibility = any ? "visible" : "hidden"
    area.setAttribute("x", from)
    area.setAttribute("width", to - from)
    filter(canvas, any ? [value(from), value(to)] : null)
  }
  on(canvas, "pointerdown", (event) => {
    svg = event.target.closest?.(".histogram")
    if (!svg) return
    start = place(event)
    svg.setPointerCapture(event.pointerId)
    select(start, start)
  })
  on(canvas, "pointermove", (event) => {
    if (svg) select(Math.min(start, place(event)), Math.max(start, place(event)))
  })
  on(canvas, "pointerup", () => { svg = null })
  on(canvas, "pointercancel", () => { svg = null })
}

// Hides the examples whose activation lies outside the range, and says how many that are.
function filter(canvas, range) {
  for (const card of canvas.querySelectorAll(".examples")) {
    let hidden = 0
    for (const row of card.querySelectorAll(".example")) {
      const v = Number(row.dataset.v)
      row.hidden = range !== null && (v < range[0] || v > range[1])
      hidden += row.hidden
    }
    card.querySelector(".hidden-count").textContent = range ? `hidden by filter: ${hidden}` : ""
  }
}
