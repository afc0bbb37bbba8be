// What is to be drawn waits for the next frame, however often it is asked for.
const waiting = new Set();
let asked = 0;

/** Has `work` done once, in the next frame. What it throws is told like any other error. */
export function soon(work) {
  waiting.add(work);
  asked ||= requestAnimationFrame(run);
}

function run() {
  asked = 0;
  const now = [...waiting];
  waiting.clear();
  for (const work of now) {
    try {
      work();
    } catch (error) {
      reportError(error);
    }
  }
}
