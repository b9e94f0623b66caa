// Shows HTML that Python has escaped, and adds what HTML alone cannot do: links that do not reload
// the page, tooltips, a range brushed on the histogram and Copy; see the files beside this one for
// the keys, for turning to another latent without a pass of the script, and for notes.

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
  noticeTouch(canvas, on)
  showTips(canvas, on)
  walkTokens(canvas, on)
  brush(canvas, on)
  zoomGraphs(canvas, on)
  lightEdges(canvas, on)
  annotate(canvas, on, component)
  listLatents(canvas, on)
  commandBar(canvas, on)
  exportTables(canvas, on)
  turnDial(canvas, on)
  return () => {
    stop.abort()
    clearTimeout(canvas.telling)
    clearTimeout(canvas.guessing)
    clearTimeout(canvas.noting)
    clearTimeout(canvas.watching)
  }
}

function receive(canvas, data) {
  canvas.received = data.html
  // What Python says is newer than what was fetched before.
  const known = canvas.sheet?.page === data.html || isWaiting(canvas, data.html)
  if (!known || canvas.noted !== data.noted) canvas.pages = new Map()
  canvas.noted = data.noted
  const awaited = wanted(canvas)
  // An answer to what the reader has left since.
  if (data.latent !== null && awaited !== null && awaited !== data.latent) return
  forget(canvas)
  draw(canvas, data.html)
  if (data.latent !== null) fetchAround(canvas, data.latent)
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

function showTips(canvas, on) {
  let tip = null
  const hide = () => { tip?.remove(); tip = null; mark(canvas, null) }
  const show = (target) => {
    hide()
    tip = document.createElement("div")
    tip.className = "tip"
    tip.setAttribute("role", "status")
    tip.textContent = target.dataset.tip
    canvas.append(tip)
    const box = target.getBoundingClientRect()
    const left = Math.min(box.left, window.innerWidth - tip.offsetWidth - 12)
    const below = box.bottom + tip.offsetHeight + 12 < window.innerHeight
    tip.style.left = `${Math.max(8, left)}px`
    tip.style.top = `${below ? box.bottom + 6 : box.top - tip.offsetHeight - 6}px`
    if (target.dataset.v) mark(canvas, Number(target.dataset.v))
  }
  on(canvas, "pointerover", (event) => {
    hide()
    const target = event.target.closest?.("[data-tip]")
    if (target) show(target)
  })
  on(canvas, "pointerleave", hide)
  canvas.showTip = show
  on(document, "scroll", hide)
  canvas.hideTip = hide
}

// A line on the histogram at the activation under the pointer; none for null.
function mark(canvas, value) {
  const svg = shown(canvas).querySelector(".histogram")
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
  // Arrows move the lower end of the range, with Shift the upper one; Escape takes it away.
  on(canvas, "keydown", (event) => {
    const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key]
    if (!event.target.matches?.(".histogram") || !(by || event.key === "Escape")) return
    event.preventDefault()
    svg = event.target
    const { left, right } = frame(svg)
    const [from, to] = (by && svg.range) || [left, right]
    const moved = (x) => Math.min(right, Math.max(left, x + ((by ?? 0) * (right - left)) / 24))
    svg.range = event.shiftKey ? [from, Math.max(from + 3, moved(to))] : [Math.min(to - 3, moved(from)), to]
    if (by) select(...svg.range)
    else select(left, left)
    if (!by) svg.range = null
    svg = null
  })
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
  for (const card of shown(canvas).querySelectorAll(".examples")) {
    let hidden = 0
    for (const row of card.querySelectorAll(".example")) {
      const v = Number(row.dataset.v)
      row.hidden = range !== null && (v < range[0] || v > range[1])
      hidden += row.hidden
    }
    card.querySelector(".hidden-count").textContent = range ? `hidden by filter: ${hidden}` : ""
  }
}
