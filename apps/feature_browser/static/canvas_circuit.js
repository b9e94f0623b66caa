
// Lights up the edges of the node under the pointer.
function lightEdges(canvas, on) {
  const edges = (svg, number) => svg.querySelectorAll(`.edge[data-s="${number}"], .edge[data-t="${number}"]`)
  const dark = () => {
    canvas.querySelector(".graph.lighting")?.classList.remove("lighting")
    for (const each of canvas.querySelectorAll(".lit")) each.classList.remove("lit")
  }
  on(canvas, "pointerover", (event) => {
    dark()
    const node = event.target.closest?.(".graph .node")
    if (!node) return
    const svg = node.closest(".graph")
    svg.classList.add("lighting")
    for (const edge of edges(svg, Number(node.dataset.n))) edge.classList.add("lit")
    // The same latents in the other graph, where there are two.
    for (const other of canvas.querySelectorAll(".graph .node")) {
      if (!svg.contains(other) && other.dataset.k === node.dataset.k) other.classList.add("lit")
    }
  })
  on(canvas, "pointerleave", dark)
  // A long prompt's picture opens at its end, where the target is, and then stays where it was put.
  for (const [i, box] of canvas.querySelectorAll(".wide-picture").entries()) {
    const places = (canvas.places ??= [])
    const [left, top] = places[i] ?? [box.scrollWidth, 0]
    if (!box.placed) [box.scrollLeft, box.scrollTop] = [left, top]
    box.placed = true
    if (box.matches(GRAPHS)) keepNames(box)
    on(box, "scroll", () => {
      places[i] = [box.scrollLeft, box.scrollTop]
      if (box.matches(GRAPHS)) keepNames(box)
    })
  }
}

// The names of rows stay at the left edge of what is seen of a picture, the tokens at its foot.
function keepNames(box) {
  const svg = box.querySelector(".graph")
  const scale = svg.clientWidth / svg.viewBox.baseVal.width || 1
  const below = box.scrollHeight - box.clientHeight - box.scrollTop
  svg.style.setProperty("--across", `${box.scrollLeft / scale}px`)
  svg.style.setProperty("--up", `${-Math.max(0, below) / scale}px`)
}

// Zooms the pictures of graphs: by buttons, Ctrl and the wheel, or + - 0 where one has the focus;
// dragging moves a picture. All pictures of a canvas have the same zoom, which outlives a redraw.
const GRAPHS = ".wide-picture:has(> .graph)"
const MOST_ZOOM = 6
const LEAST_ZOOM = 0.15

function zoomGraphs(canvas, on) {
  const boxes = () => [...canvas.querySelectorAll(GRAPHS)]
  if (!boxes().length) return
  const set = (zoom, box, at) => {
    const before = canvas.zoom ?? 1
    canvas.zoom = Math.min(MOST_ZOOM, Math.max(LEAST_ZOOM, zoom))
    const grown = canvas.zoom / before
    canvas.style.setProperty("--zoom", canvas.zoom)
    // What is under the pointer, or in the middle, stays there.
    for (const each of boxes()) {
      const [x, y] = each === box && at ? at : [each.clientWidth / 2, each.clientHeight / 2]
      each.scrollLeft = (each.scrollLeft + x) * grown - x
      each.scrollTop = (each.scrollTop + y) * grown - y
      keepNames(each)
    }
  }
  const sizes = (box) => box.querySelector(".graph").getBoundingClientRect()
  const across = (box) => box.clientWidth / sizes(box).width
  const upwards = (box) => Math.max(320, 0.8 * window.innerHeight) / sizes(box).height
  const whole = () =>
    (canvas.zoom ?? 1) * Math.min(...boxes().map((box) => Math.min(across(box), upwards(box))))
  const act = (by) => {
    const now = canvas.zoom ?? 1
    set({ in: now * 1.3, out: now / 1.3, one: 1, fit: whole() }[by])
  }
  // A picture is first seen in its whole width, if its names can be read then.
  const least = boxes().length > 1 ? 0.5 : 0.75
  set(canvas.zoom ?? Math.min(1, Math.max(least, Math.min(...boxes().map(across)))))
  on(canvas, "click", (event) => {
    const button = event.target.closest?.("[data-zoom]")
    if (button) act(button.dataset.zoom)
  })
  on(canvas, "keydown", (event) => {
    const by = { "+": "in", "=": "in", "-": "out", "0": "fit", "1": "one" }[event.key]
    if (by && event.target.matches?.(GRAPHS)) act(by)
  })
  on(canvas, "wheel", (event) => {
    const box = event.target.closest?.(GRAPHS)
    if (!box || !(event.ctrlKey || event.metaKey)) return
    event.preventDefault()
    const edge = box.getBoundingClientRect()
    const at = [event.clientX - edge.left, event.clientY - edge.top]
    set((canvas.zoom ?? 1) * Math.exp(-event.deltaY / 300), box, at)
  }, { passive: false })
  dragGraphs(canvas, on)
}

function dragGraphs(canvas, on) {
  let from = null
  let moved = false
  on(canvas, "pointerdown", (event) => {
    const box = event.target.closest?.(GRAPHS)
    moved = false
    from = box && event.button === 0 && event.pointerType === "mouse"
      ? { box, x: event.clientX + box.scrollLeft, y: event.clientY + box.scrollTop, start: [event.clientX, event.clientY] }
      : null
  })
  on(window, "pointermove", (event) => {
    if (!from) return
    const [x, y] = from.start
    moved ||= Math.hypot(event.clientX - x, event.clientY - y) > 4
    if (!moved) return
    from.box.classList.add("dragged")
    from.box.scrollLeft = from.x - event.clientX
    from.box.scrollTop = from.y - event.clientY
  })
  on(window, "pointerup", () => {
    from?.box.classList.remove("dragged")
    from = null
  })
  // The end of a drag on a node is no click on it.
  on(canvas, "click", (event) => {
    if (!moved || !event.target.closest?.(GRAPHS)) return
    event.preventDefault()
    event.stopImmediatePropagation()
    moved = false
  }, { capture: true })
  on(canvas, "dragstart", (event) => {
    if (event.target.closest?.(GRAPHS)) event.preventDefault()
  })
}
