// Pages on top of one another: one is shown, and others wait, laid out already, so that turning to
// one of them is only to paint it. What `content-visibility: hidden` hides keeps its layout, and is
// out of reach of the keyboard, of screen readers and of a search in the page.

const MOST_WAITING = 6
const CAN_WAIT = CSS.supports("content-visibility", "hidden")
// Only the page that is shown says of which latent it is.
const OF_THE_SHOWN = ["data-latent", "data-latents"]

// Where to look for what is on the page.
function shown(canvas) {
  return canvas.sheet ?? canvas
}

function draw(canvas, html) {
  const old = canvas.sheet
  if (old?.page === html) return
  const resume = beingTyped(canvas) ?? inHand(canvas)
  canvas.hideTip?.()
  canvas.sheet = takeWaiting(canvas, html) ?? newSheet(canvas, html)
  name(canvas.sheet)
  canvas.sheet.classList.remove("waiting")
  if (old && mayWait(old, canvas.sheet)) putAside(canvas, old)
  else old?.remove()
  resume?.()
}

// Whoever goes by the keyboard goes on from where they were: what has the focus is found again by its
// name when the same page is drawn anew. Call this before drawing, and the result after it.
function inHand(canvas) {
  const old = canvas.sheet
  const held = canvas.getRootNode().activeElement
  if (!old?.contains(held)) return null
  const called = (element) => element.ariaLabel ?? element.textContent
  const same = (other) => called(other) === called(held)
  const alike = () => [...canvas.sheet.querySelectorAll(held.localName)].filter(same)
  const at = alike().indexOf(held)
  return () => {
    if (String(old.names) === String(canvas.sheet.names)) alike()[at]?.focus({ preventScroll: true })
  }
}

// A page that is turned to looks as it was drawn, so what the reader has changed cannot wait.
function mayWait(old, sheet) {
  return CAN_WAIT && !old.touched && old.names.length > 0 && String(old.names) !== String(sheet.names)
}

function newSheet(canvas, html) {
  const sheet = document.createElement("div")
  sheet.page = html
  sheet.innerHTML = html
  reachable(sheet)
  const names = OF_THE_SHOWN.map((key) => [key, sheet.firstElementChild?.getAttribute(key)])
  sheet.names = names.filter(([, value]) => value != null)
  canvas.append(sheet)
  return sheet
}

function name(sheet) {
  for (const [key, value] of sheet.names) sheet.firstElementChild.setAttribute(key, value)
}

// The last in the queue was used last.
function putAside(canvas, sheet) {
  sheet.classList.add("waiting")
  for (const [key] of sheet.names) sheet.firstElementChild.removeAttribute(key)
  canvas.waiting = [...(canvas.waiting ?? []), sheet]
  while (canvas.waiting.length > MOST_WAITING) canvas.waiting.shift().remove()
}

function takeWaiting(canvas, html) {
  const sheet = canvas.waiting?.find((other) => other.page === html)
  if (sheet) canvas.waiting = canvas.waiting.filter((other) => other !== sheet)
  return sheet
}

// Lays a page out at some moment, by default when nothing else is to be done, in two steps, so that
// a key waits for one only.
async function layOut(canvas, html, moment = idle) {
  if (!CAN_WAIT || html === null || canvas.sheet?.page === html) return
  const ready = takeWaiting(canvas, html)
  if (ready) return putAside(canvas, ready)
  await moment()
  if (!canvas.isConnected || canvas.sheet.page === html || isWaiting(canvas, html)) return
  const sheet = newSheet(canvas, html)
  putAside(canvas, sheet)
  await moment()
  // Asking where something is has it laid out.
  if (sheet.classList.contains("waiting")) sheet.firstElementChild?.getBoundingClientRect()
}

function isWaiting(canvas, html) {
  return canvas.waiting?.some((sheet) => sheet.page === html)
}

function idle() {
  if (!window.requestIdleCallback) return soon()
  return new Promise((done) => requestIdleCallback(done, { timeout: 200 }))
}

function soon() {
  return new Promise((done) => setTimeout(done))
}

function noticeTouch(canvas, on) {
  const touch = () => { shown(canvas).touched = true }
  for (const event of ["pointerdown", "focusin", "click"]) on(canvas, event, touch)
}
