
// Lights up the edges of the node under the pointer.
function lightEdges(canvas, on) {
  const edges = (svg, number) => svg.querySelectorAll(`.edge[data-s="${number}"], .edge[data-t="${number}"]`)
  const dark = () => {
    canvas.querySelector(".graph.lighting")?.classList.remove("lighting")
    for (const edge of canvas.querySelectorAll(".edge.lit")) edge.classList.remove("lit")
  }
  on(canvas, "pointerover", (event) => {
    dark()
    const node = event.target.closest?.(".graph .node")
    if (!node) return
    const svg = node.closest(".graph")
    svg.classList.add("lighting")
    for (const edge of edges(svg, Number(node.dataset.n))) edge.classList.add("lit")
  })
  on(canvas, "pointerleave", dark)
  // A long prompt's picture opens at its end, where the target is, and then stays where it was put.
  const box = canvas.querySelector(".wide-picture")
  if (!box) return
  if (!box.placed) box.scrollLeft = canvas.across ?? box.scrollWidth
  box.placed = true
  on(box, "scroll", () => { canvas.across = box.scrollLeft })
}
