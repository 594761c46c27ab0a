//! As much of the WebDriver protocol as the tests need: JSON over HTTP to a chromedriver of our own.

use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine;
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpStream;

use crate::harness::wait_for;

/// For a start of Chromium on a slow machine.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(120);
const CONDITION_TIME_MAX: Duration = Duration::from_secs(120);
/// The key by which WebDriver names elements.
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

/// A browser with one page; it ends when this is dropped.
pub struct Browser {
    address: String,
    session: String,
    _driver: Driver,
}

/// chromedriver and what it started.
struct Driver {
    process: std::process::Child,
    _folder: tempfile::TempDir,
}

impl Drop for Driver {
    fn drop(&mut self) {
        // The whole group: Chromium is a child of the driver's and would stay.
        if let Some(group) = rustix::process::Pid::from_raw(self.process.id().cast_signed()) {
            rustix::process::kill_process_group(group, rustix::process::Signal::KILL).ok();
        }
        drop(self.process.wait());
    }
}

fn find(names: &[&str]) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    let found = names.iter().flat_map(|name| folders.iter().map(move |folder| folder.join(name)));
    found.into_iter().find(|file| file.is_file()).unwrap_or_else(|| {
        panic!("{} is missing: apt-get install chromium chromium-driver", names[0])
    })
}

impl Browser {
    /// A new one, without anything of earlier ones.
    pub async fn start() -> Self {
        use std::os::unix::process::CommandExt;
        let chromium = find(&["chromium", "chromium-browser", "google-chrome"]);
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("chromedriver.log");
        let output = std::fs::File::create(&log).unwrap();
        let process = std::process::Command::new(find(&["chromedriver"]))
            .arg("--port=0")
            .stdout(output.try_clone().unwrap())
            .stderr(output)
            .process_group(0)
            .spawn()
            .unwrap();
        let driver = Driver { process, _folder: folder };
        let port = wait_for("chromedriver listens", ANSWER_TIME_MAX, || async {
            let text = std::fs::read_to_string(&log).map_err(|e| e.to_string())?;
            let after = text.split("started successfully on port ").nth(1).ok_or(text.clone())?;
            after.trim().trim_end_matches('.').parse::<u16>().map_err(|e| e.to_string())
        })
        .await;
        let address = format!("127.0.0.1:{port}");
        // Nothing foreign is opened, and a sandbox in a sandbox does not work everywhere, for root never.
        let wanted = json!({"capabilities": {"alwaysMatch": {
            "goog:chromeOptions": {
                "binary": chromium,
                "args": [
                    "--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu",
                    "--window-size=1100,1250",
                ],
            },
            "goog:loggingPrefs": {"browser": "ALL"},
        }}});
        let session = call(&address, "POST", "/session", Some(&wanted)).await.unwrap();
        let session = session["sessionId"].as_str().unwrap().to_owned();
        Self { address, session, _driver: driver }
    }

    async fn ask(&self, method: &str, path: &str, body: Option<Value>) -> Result<Value, String> {
        let path = format!("/session/{}{path}", self.session);
        call(&self.address, method, &path, body.as_ref()).await
    }

    /// Opens a page.
    pub async fn open(&self, url: &str) {
        self.ask("POST", "/url", Some(json!({ "url": url }))).await.unwrap();
    }

    /// Opens a page as soon as somebody serves it.
    pub async fn open_when_served(&self, url: &str) {
        wait_for("the page is served", CONDITION_TIME_MAX, || async {
            self.ask("POST", "/url", Some(json!({ "url": url }))).await
        })
        .await;
    }

    /// The value of an expression in the page.
    pub async fn run(&self, expression: &str) -> Value {
        let script = json!({ "script": format!("return {expression}"), "args": [] });
        self.ask("POST", "/execute/sync", Some(script)).await.unwrap()
    }

    /// Waits until an expression in the page is true.
    pub async fn wait(&self, what: &str, expression: &str) {
        wait_for(what, CONDITION_TIME_MAX, || async {
            match self.run(expression).await {
                Value::Bool(true) => Ok(()),
                _ => Err(self.run("document.body.innerText").await.to_string()),
            }
        })
        .await;
    }

    async fn element(&self, selector: &str) -> String {
        let by = json!({ "using": "css selector", "value": selector });
        let found = self.ask("POST", "/element", Some(by)).await.unwrap();
        found[ELEMENT].as_str().unwrap().to_owned()
    }

    async fn of(&self, selector: &str, method: &str, what: &str, body: Option<Value>) -> Value {
        let element = self.element(selector).await;
        self.ask(method, &format!("/element/{element}/{what}"), body).await.unwrap()
    }

    /// What can be seen of an element's text.
    pub async fn text(&self, selector: &str) -> String {
        self.of(selector, "GET", "text", None).await.as_str().unwrap().to_owned()
    }

    /// What a screen reader calls an element.
    pub async fn label(&self, selector: &str) -> String {
        self.of(selector, "GET", "computedlabel", None).await.as_str().unwrap().to_owned()
    }

    /// Types a text into an element.
    pub async fn write(&self, selector: &str, text: &str) {
        self.of(selector, "POST", "value", Some(json!({ "text": text }))).await;
    }

    /// Empties an element.
    pub async fn clear(&self, selector: &str) {
        self.of(selector, "POST", "clear", Some(json!({}))).await;
        // WebDriver clears without the event that a person's deleting causes.
        let input =
            format!("document.querySelector('{selector}').dispatchEvent(new Event('input'))");
        self.run(&input).await;
    }

    /// Clicks on an element.
    pub async fn click(&self, selector: &str) {
        self.of(selector, "POST", "click", Some(json!({}))).await;
    }

    /// Ends what was typed into an element.
    pub async fn press_enter(&self, selector: &str) {
        self.write(selector, "\u{e007}").await;
    }

    /// Moves the focus on by the keyboard.
    pub async fn press_tab(&self) {
        let key = |kind: &str| json!({ "type": kind, "value": "\u{e004}" });
        let keys = json!({ "actions": [
            { "type": "key", "id": "keyboard", "actions": [key("keyDown"), key("keyUp")] }
        ]});
        self.ask("POST", "/actions", Some(keys)).await.unwrap();
    }

    /// As if the person preferred a `light` or a `dark` scheme.
    pub async fn prefer(&self, scheme: &str) {
        let media = json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] });
        let command = json!({ "cmd": "Emulation.setEmulatedMedia", "params": media });
        self.ask("POST", "/goog/cdp/execute", Some(command)).await.unwrap();
    }

    /// The contrast of an element's text with what is behind it, as WCAG reckons.
    pub async fn contrast(&self, selector: &str) -> f64 {
        let script = format!(
            "(() => {{
               const parts = text => text.match(/[0-9.]+/g).map(Number);
               const light = text => parts(text).slice(0, 3).map(v => v / 255)
                 .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
                 .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
               let at = document.querySelector('{selector}');
               const front = light(getComputedStyle(at).color);
               const clear = node => parts(getComputedStyle(node).backgroundColor)[3] === 0;
               while (at.parentElement && clear(at)) at = at.parentElement;
               const back = light(getComputedStyle(at).backgroundColor);
               return (Math.max(front, back) + 0.05) / (Math.min(front, back) + 0.05);
             }})()"
        );
        self.run(&script).await.as_f64().unwrap()
    }

    /// What the browser complained about in its console since the last time.
    pub async fn complaints(&self) -> Vec<Value> {
        let entries =
            self.ask("POST", "/se/log", Some(json!({ "type": "browser" }))).await.unwrap();
        entries.as_array().unwrap().clone()
    }

    /// Keeps a picture of the page.
    pub async fn screenshot(&self, file: impl AsRef<Path>) {
        let picture = self.ask("GET", "/screenshot", None).await.unwrap();
        let picture = base64::prelude::BASE64_STANDARD.decode(picture.as_str().unwrap()).unwrap();
        std::fs::write(file, picture).unwrap();
    }
}

/// One command; its value, or what the driver says is wrong.
async fn call(
    address: &str,
    method: &str,
    path: &str,
    body: Option<&Value>,
) -> Result<Value, String> {
    let body = body.map(Value::to_string).unwrap_or_default();
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", address)
        .header("content-type", "application/json")
        .body(Full::new(Bytes::from(body)))
        .map_err(|e| e.to_string())?;
    let exchange = async {
        let stream = TcpStream::connect(address).await.map_err(|e| e.to_string())?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
        let driving = tokio::spawn(connection);
        let answer = sender.send_request(request).await.map_err(|e| e.to_string())?;
        let bytes = answer.into_body().collect().await.map_err(|e| e.to_string())?.to_bytes();
        driving.abort();
        serde_json::from_slice::<Value>(&bytes).map_err(|e| e.to_string())
    };
    let answer = tokio::time::timeout(ANSWER_TIME_MAX, exchange)
        .await
        .map_err(|_| format!("no answer to {path} in {ANSWER_TIME_MAX:?}"))??;
    match &answer["value"]["error"] {
        Value::String(error) => Err(format!("{path}: {error}: {}", answer["value"]["message"])),
        _ => Ok(answer["value"].clone()),
    }
}
