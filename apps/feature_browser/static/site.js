// The published site: the app's tooltips, histograms and graphs, keys to turn pages, and a search.
function startSite() {
  const canvas = document.querySelector(".canvas")
  const on = (target, name, action, options) => target.addEventListener(name, action, options)
  showTips(canvas, on)
  brush(canvas, on)
  zoomGraphs(canvas, on)
  lightEdges(canvas, on)
  exportTables(canvas, on)
  switchTheme(document.querySelector(".theme"))
  const field = document.querySelector(".search")
  if (field) searchRows(field)
  const keys = { j: "next", k: "prev", i: "up" }
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return
    if (event.target.matches("input, textarea")) {
      if (event.key === "Escape") event.target.blur()
      return
    }
    if (event.key === "/" && field) {
      event.preventDefault()
      field.focus()
    }
    document.querySelector(`a[rel="${keys[event.key] ?? "none"}"]`)?.click()
  })
}

// The system's theme, until the reader asks for the other one; kept where the browser allows it.
function switchTheme(button) {
  const root = document.documentElement
  const kept = (value) => {
    try {
      if (value) localStorage.setItem("saelab-theme", value)
      return localStorage.getItem("saelab-theme")
    } catch { return value }
  }
  if (kept()) root.dataset.theme = kept()
  button.hidden = false
  button.addEventListener("click", () => {
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches
    root.dataset.theme = dark ? "light" : "dark"
    kept(root.dataset.theme)
  })
}

// Hides the rows without all the words; Enter opens the first that is left.
function searchRows(field) {
  const rows = [...document.querySelectorAll(".listed tbody tr")].map((row) => [row, row.textContent.toLowerCase()])
  const count = document.querySelector(".count")
  const all = count.textContent
  const search = () => {
    const words = field.value.toLowerCase().split(/\s+/).filter(Boolean)
    let n = 0
    for (const [row, text] of rows) {
      row.hidden = !words.every((word) => text.includes(word))
      n += !row.hidden
    }
    count.textContent = words.length ? `${n} of ${all}` : all
  }
  field.addEventListener("input", search)
  field.addEventListener("keydown", (event) => {
    if (event.key === "Enter") document.querySelector(".listed tbody tr:not([hidden]) a[href]")?.click()
  })
  search()
}

startSite()
