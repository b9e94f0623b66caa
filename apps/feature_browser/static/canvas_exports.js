// The rows of a table as a file, as they are shown: numbers with plain signs and without thin spaces.

function exportTables(canvas, on) {
  on(canvas, "click", (event) => {
    const button = event.target.closest("[data-export]")
    const table = button?.closest(".tabled").querySelector("table")
    if (!table) return
    const { heads, rows } = cells(table)
    const form = button.dataset.export
    const text = form === "csv" ? [heads, ...rows].map(csvLine).join("") : rows.map((row) => jsonLine(heads, row)).join("")
    const link = document.createElement("a")
    link.href = URL.createObjectURL(new Blob([text], { type: "text/plain" }))
    link.download = `${(table.caption?.textContent || "table").toLowerCase().replace(/[^a-z0-9]+/g, "-")}.${form}`
    link.click()
    setTimeout(() => URL.revokeObjectURL(link.href), 1000)
  })
}

function cells(table) {
  const text = (cell) => {
    const field = cell.querySelector("input")
    const shown = (field ? field.value : cell.innerText).replace(/[\u2066-\u2069]/g, "").replace(/\s+/g, " ").trim()
    const plain = shown.replace(/(\d) (?=\d)/g, "$1").replace(/\u2212/g, "-")
    return /^[-+]?[\d.]+( ?%)?$/.test(plain) ? plain : shown
  }
  const [head] = table.tHead.rows
  return {
    heads: [...head.cells].map((cell, i) => text(cell) || `column ${i + 1}`),
    rows: [...table.tBodies[0].rows].filter((row) => !row.hidden).map((row) => [...row.cells].map(text)),
  }
}

// A spreadsheet would run a text that begins like a formula.
function csvLine(row) {
  const quoted = (text) => {
    const safe = /^[=@\t]|^[-+](?![\d.])/.test(text) ? `'${text}` : text
    return /[",\n']/.test(safe) ? `"${safe.replace(/"/g, '""')}"` : safe
  }
  return `${row.map(quoted).join(",")}\n`
}

function jsonLine(heads, row) {
  const value = (text) => (/^[-+]?\d+(\.\d+)?$/.test(text) ? Number(text) : text === "\u2013" ? null : text)
  return `${JSON.stringify(Object.fromEntries(heads.map((head, i) => [head, value(row[i])])))}\n`
}
