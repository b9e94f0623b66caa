// Times steps in the page: from an input event to the paint that shows what it asked for.

window.probe = (() => {
  const roots = () => [...document.querySelectorAll("*")].flatMap((e) => (e.shadowRoot ? [e.shadowRoot] : []))
  const all = (selector) => roots().flatMap((root) => [...root.querySelectorAll(selector)])
  // A message after an animation frame arrives when that frame was painted.
  const painted = (then) => requestAnimationFrame(() => {
    const channel = new MessageChannel()
    channel.port1.onmessage = () => then(performance.now())
    channel.port2.postMessage(null)
  })
  let steps = null
  // Starts the clock at the next event `name`; `there()` says whether what it asked for is drawn.
  const start = (name, keys, there) => {
    steps = null
    const begin = (event) => {
      if (keys && !keys.includes(event.key)) return
      document.removeEventListener(name, begin, true)
      const heard = performance.now()
      const look = () => {
        if (!there()) return setTimeout(look, 1)
        const drawn = performance.now()
        painted((end) => { steps = [heard, drawn, end].map((time) => time - event.timeStamp) })
      }
      // Before the frame that this event brings about, if it is drawn already.
      look()
    }
    document.addEventListener(name, begin, true)
  }
  const latent = (wanted) => {
    const canvas = roots().find((root) => root.querySelector("[data-latent]"))
    start("keydown", ["j", "k", "Enter"], () => canvas.querySelector(`[data-latent="${wanted}"]`))
  }
  // The least that a paint takes here: one word changes.
  const floor = () => {
    const word = roots().find((root) => root.querySelector(".brand")).querySelector(".brand")
    start("keydown", ["q"], () => { word.textContent += "."; return true })
  }
  const view = (title, figures) => {
    // Pages that wait to be turned to are drawn at any time.
    const pages = () => all(".page").filter((page) => !page.closest(".waiting"))
    const old = new Set(pages())
    start("click", null, () => {
      const here = all(".top > a[aria-current]")[0]?.textContent === title
      const drawn = document.querySelectorAll(".stPlotlyChart .main-svg").length >= figures
      return here && drawn && pages().some((page) => !old.has(page))
    })
  }
  // Milliseconds after the input: heard by the page, drawn, painted.
  return { latent, floor, view, taken: () => steps }
})()
