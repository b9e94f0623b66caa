// A slider over texts that are on the page already: each of its places shows one of them.

function turnDial(canvas, on) {
  on(canvas, "input", ({ target }) => {
    if (!target.matches?.("[data-dial]")) return
    for (const notch of target.closest(".dial").querySelectorAll("[data-notch]")) {
      notch.hidden = notch.dataset.notch !== target.value
      if (!notch.hidden) target.setAttribute("aria-valuetext", notch.querySelector("b").textContent)
    }
  })
}
