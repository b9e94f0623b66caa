// Shows HTML that Python has escaped, and adds what HTML alone cannot do: links that do not reload
// the page, tooltips, a range brushed on the histogram, the keys G and Copy, and neighbouring pages
// that are drawn at once while Python is still being asked for them.

export default function (component) {
  const { parentElement, data, setTriggerValue } = component
  const canvas = parentElement.querySelector(".canvas")
  // Streamlit may render old data again; a page that was drawn ahead must survive that.
  if (canvas.received !== data.html) {
    canvas.received = data.html
    draw(canvas, data.html)
  }
  // This runs at every rendering, the returned function only when the canvas goes away.
  canvas.stop?.abort()
  const stop = new AbortController()
  canvas.stop = stop
  const on = (target, name, action) => target.addEventListener(name, action, { signal: stop.signal })
  followLinks(canvas, on, setTriggerValue)
  showTips(canvas, on)
  brush(canvas, on)
  if (data.ahead) turnPages(canvas, on, data.ahead, setTriggerValue)
  return () => stop.abort()
}

function draw(canvas, html) {
  if (canvas.shown === html) return
  canvas.innerHTML = html
  canvas.shown = html
}

// J and K ask Python for the next and previous latent, and show it now if it came along. Asking for
// a latent by number, not for "one more", loses no step when the keys are faster than Python.
function turnPages(canvas, on, ahead, setTriggerValue) {
  const turn = (by) => {
    const page = canvas.querySelector("[data-latent]")
    const latent = wanted(canvas, Number(page?.dataset.latent)) + by
    if (!(latent >= 0 && latent < Number(page?.dataset.latents))) return
    canvas.wanted = { latent, time: performance.now() }
    if (latent in ahead) draw(canvas, ahead[latent])
    const address = new URLSearchParams(window.location.search)
    address.set("latent", latent)
    setTriggerValue("go", `?${address}`)
  }
  on(document, "keydown", (event) => {
    const typing = event.composedPath()[0].matches?.("input, textarea, select, [contenteditable]")
    if (typing || event.ctrlKey || event.metaKey || event.altKey || event.shiftKey) return
    if (event.key === "j") turn(1)
    if (event.key === "k") turn(-1)
    if (event.key === "g") goToField(event)
  })
}

// The latent last asked for, as long as its answer may still be on the way; else the one shown.
function wanted(canvas, shown) {
  const asked = canvas.wanted
  return asked && performance.now() - asked.time < 1500 ? asked.latent : shown
}

function followLinks(canvas, on, setTriggerValue) {
  on(canvas, "click", (event) => {
    const copy = event.target.closest("[data-copy]")
    if (copy) copyText(copy)
    const link = event.target.closest("a[href^='?']")
    const elsewhere = event.ctrlKey || event.metaKey || event.shiftKey || event.button !== 0
    if (!link || elsewhere) return
    event.preventDefault()
    canvas.wanted = null
    setTriggerValue("go", link.getAttribute("href"))
  })
}

function copyText(button) {
  const done = (word) => { button.textContent = word }
  navigator.clipboard.writeText(button.dataset.copy).then(() => done("Copied"), () => done("Not allowed"))
}

function goToField(event) {
  const field = document.querySelector('input[aria-label="Go to latent"]')
  if (!field) return
  event.preventDefault()
  field.focus()
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
