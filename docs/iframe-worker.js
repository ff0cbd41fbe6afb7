// Search in pages that are opened as files: a browser starts no worker from a file, so a hidden
// frame runs its script. Served pages keep the real worker.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      this.waiting = [];
      this.onmessage = null;
      const frame = document.createElement("iframe");
      frame.hidden = true;
      document.body.appendChild(frame);
      const inside = (this.inside = frame.contentWindow);
      inside.postMessageOut = (data) => {
        const event = new MessageEvent("message", { data });
        this.dispatchEvent(event);
        if (this.onmessage) this.onmessage(event);
      };
      inside.whenReady = () => {
        this.ready = true;
        this.waiting.splice(0).forEach((data) => this.postMessage(data));
      };
      const page = inside.document;
      page.open();
      page.write(
        "<script>postMessage = (data) => postMessageOut(data);" +
          "importScripts = (...urls) => Promise.all(urls.map((url) => new Promise((done, fail) => {" +
          "const s = document.createElement('script');" +
          "s.src = url; s.onload = done; s.onerror = fail; document.head.appendChild(s); })));" +
          "</scr" + "ipt><script src='" + url + "'></scr" + "ipt>" +
          "<script>whenReady();</scr" + "ipt>"
      );
      page.close();
    }
    postMessage(data) {
      if (!this.ready) this.waiting.push(data);
      else this.inside.dispatchEvent(new MessageEvent("message", { data }));
    }
    terminate() {}
  };
}
