// Under the pointer, what a curve says at the nearest step; the curves beside it say theirs.

function readCurves(canvas, on) {
  let tip = null
  const clear = () => {
    tip?.remove()
    tip = null
    for (const mark of shown(canvas).querySelectorAll(".curve .read")) mark.remove()
    for (const value of shown(canvas).querySelectorAll("[data-last]")) {
      value.textContent = value.dataset.last
      delete value.dataset.last
    }
  }
  on(canvas, "pointermove", (event) => {
    const svg = event.target.closest?.(".curve")
    if (!svg && !tip) return
    clear()
    if (!svg) return
    const box = svg.getBoundingClientRect()
    const across = (event.clientX - box.left) / box.width
    for (const other of svg.closest(".multiples")?.querySelectorAll(".curve") ?? [svg]) {
      const step = nearest(other, across * other.viewBox.baseVal.width)
      markStep(other, step)
      const value = other.closest(".small")?.querySelector("h3 b")
      if (value) {
        value.dataset.last = value.textContent
        value.textContent = step.value
      }
      if (other === svg) tip = tipOf(canvas, svg, step, event)
    }
  })
  on(canvas, "pointerleave", clear)
  on(document, "scroll", clear)
}

function nearest(svg, x) {
  const points = [...svg.querySelector("polyline").points]
  const says = svg.dataset.says.split(";")
  let best = 0
  points.forEach((point, i) => { if (Math.abs(point.x - x) < Math.abs(points[best].x - x)) best = i })
  const [tokens, value] = says[best].split("|")
  return { x: points[best].x, y: points[best].y, tokens, value }
}

function markStep(svg, { x, y }) {
  const height = svg.viewBox.baseVal.height
  const add = (name, attributes) => {
    const mark = document.createElementNS("http://www.w3.org/2000/svg", name)
    for (const [key, value] of Object.entries(attributes)) mark.setAttribute(key, value)
    svg.append(mark)
  }
  add("line", { class: "read", x1: x, x2: x, y1: 4, y2: height - 26 })
  add("circle", { class: "read", cx: x, cy: y, r: 3.5 })
}

function tipOf(canvas, svg, { tokens, value }, event) {
  const tip = document.createElement("div")
  tip.className = "tip"
  tip.textContent = `${tokens} tokens\n${svg.dataset.title} ${value}`
  canvas.append(tip)
  const left = event.clientX + 14
  const fits = left + tip.offsetWidth + 8 < window.innerWidth
  tip.style.left = `${fits ? left : event.clientX - tip.offsetWidth - 14}px`
  tip.style.top = `${event.clientY + 14}px`
  return tip
}
