// The rows of a table as a file: numbers with their values, and each part of a cell in its own column.

function exportTables(canvas, on) {
  on(canvas, "click", (event) => {
    const button = event.target.closest("[data-export]")
    const table = button?.closest(".tabled").querySelector("table")
    if (!table) return
    const { heads, rows } = saved(table)
    const form = button.dataset.export
    const text = form === "csv" ? [heads, ...rows].map(csvLine).join("") : rows.map((row) => jsonLine(heads, row)).join("")
    const link = document.createElement("a")
    link.href = URL.createObjectURL(new Blob([text], { type: "text/plain" }))
    link.download = `${(table.caption?.textContent || "table").toLowerCase().replace(/[^a-z0-9]+/g, "-")}.${form}`
    link.click()
    setTimeout(() => URL.revokeObjectURL(link.href), 1000)
  })
}

// A cell's own value stands in the column of its heading, each of its parts in one behind it.
function saved(table) {
  const rows = [...table.tBodies[0].rows].filter((row) => !row.hidden).map((row) => [...row.cells])
  const columns = [...table.tHead.rows[0].cells].flatMap((head, i) => {
    if ("unsaved" in head.dataset) return []
    const title = head.dataset.saved || plainText(head) || `column ${i + 1}`
    const parts = new Set(rows.flatMap((row) => [...row[i].querySelectorAll("[data-column]")].map((part) => part.dataset.column)))
    const ends = [...parts].find((part) => title.endsWith(` · ${part}`))
    const own = { name: ends ? title.slice(0, -ends.length - 3) : title, value: (row) => ownValue(row[i]) }
    return [own, ...[...parts].map((part) => ({
      name: part === ends ? part : `${title} ${part}`,
      value: (row) => partValue([...row[i].querySelectorAll("[data-column]")].find((one) => one.dataset.column === part)),
    }))]
  })
  return { heads: columns.map(({ name }) => name), rows: rows.map((row) => columns.map(({ value }) => value(row))) }
}

function ownValue(cell) {
  const field = cell.querySelector("input")
  if (field) return field.value
  const number = cell.querySelector("data:not([data-column])")
  if (number) return Number(number.value)
  const text = plainText(cell)
  if (text === "\u2013" || text === "") return null
  return cell.classList.contains("number") ? numberIn(text) : text
}

function partValue(part) {
  if (!part) return null
  const text = plainText({ textContent: part.getAttribute("value") })
  return text === "\u2013" || text === "" ? null : numberIn(text)
}

// Of a text that is nothing but a number, its value; 5 % are 0.05.
function numberIn(text) {
  const plain = text.replace(/(\d)[ \u00a0,](?=\d{3})/g, "$1").replace(/\u2212/g, "-")
  const [, digits, share] = plain.match(/^([-+]?[\d.]+(?:e[-+]?\d+)?)( ?%)?$/) ?? []
  return digits === undefined || Number.isNaN(Number(digits)) ? text : Number(digits) / (share ? 100 : 1)
}

// The text without parts, buttons, and what only looks good.
function plainText(cell) {
  let text = cell.textContent
  if (cell.cloneNode) {
    const copy = cell.cloneNode(true)
    for (const part of copy.querySelectorAll("[data-column], button, [aria-hidden=true]")) part.remove()
    for (const line of copy.querySelectorAll("br")) line.replaceWith(" ")
    text = copy.textContent
  }
  return text.replace(/[\u2066-\u2069]/g, "").replace(/\s+/g, " ").replace(/\(\s*\)|[·,]\s*$/g, "").trim()
}

// A spreadsheet would run a text that begins like a formula.
function csvLine(row) {
  const quoted = (value) => {
    if (typeof value !== "string") return value ?? ""
    const safe = /^[=@\t+-]/.test(value) ? `'${value}` : value
    return /[",\n']/.test(safe) ? `"${safe.replace(/"/g, '""')}"` : safe
  }
  return `${row.map(quoted).join(",")}\n`
}

function jsonLine(heads, row) {
  return `${JSON.stringify(Object.fromEntries(heads.map((head, i) => [head, row[i]])))}\n`
}
