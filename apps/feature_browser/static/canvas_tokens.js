// Tokens and histograms by the keyboard: one example of a page is in the order of Tab, arrows up and
// down lead to the others, arrows left and right from token to token, whose tooltip is read aloud.

const LINES = ".text:has([data-tip])"

function reachable(sheet) {
  for (const [i, line] of sheet.querySelectorAll(LINES).entries()) {
    line.tabIndex = i ? -1 : 0
    line.setAttribute("role", "group")
    line.setAttribute("aria-label", "Example: arrows left and right walk through its tokens")
  }
  for (const svg of sheet.querySelectorAll(".histogram")) {
    svg.setAttribute("tabindex", "0")
    svg.setAttribute("aria-description", "arrow keys choose a range of examples")
  }
}

function walkTokens(canvas, on) {
  on(canvas, "keydown", (event) => {
    const line = event.target.closest?.(LINES)
    const by = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 1, ArrowUp: -1 }[event.key]
    if (!line || event.target !== line || !(by || event.key === "Escape")) return
    if (!by) return leave(canvas, line)
    event.preventDefault()
    if (event.key === "ArrowDown" || event.key === "ArrowUp") return toLine(canvas, line, by)
    const tokens = [...line.querySelectorAll("[data-tip]")]
    const at = tokens.findIndex((token) => token.classList.contains("walked"))
    const next = tokens[at < 0 ? (by > 0 ? 0 : tokens.length - 1) : (at + by + tokens.length) % tokens.length]
    tokens[at]?.classList.remove("walked")
    next.classList.add("walked")
    canvas.showTip(next)
  })
  on(canvas, "focusout", (event) => {
    const line = event.target.closest?.(LINES)
    if (line) leave(canvas, line)
  })
}

function toLine(canvas, line, by) {
  const lines = [...shown(canvas).querySelectorAll(LINES)].filter((each) => each.offsetParent)
  const next = lines[lines.indexOf(line) + by]
  if (!next) return
  line.tabIndex = -1
  next.tabIndex = 0
  next.focus()
}

function leave(canvas, line) {
  line.querySelector(".walked")?.classList.remove("walked")
  canvas.hideTip()
}
