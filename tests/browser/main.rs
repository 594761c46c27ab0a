//! `GET /` in a real browser: headless Chromium, driven by chromedriver. `make test-browser` runs this.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    clippy::print_stderr,
    unreachable_pub,
    reason = "test helpers panic with what went wrong"
)]

mod driver;
#[allow(dead_code, unused_imports, reason = "shared with other tests: each uses a part")]
#[path = "../it/harness/mod.rs"]
mod harness;

use bson::{Document, doc};
use rustix::process::Signal;
use serde_json::{Value, json};

use driver::Browser;
use harness::{Daemon, DaemonOptions, Pair};

/// Names that a page could stumble over.
const NAMES: [&str; 4] = ["orders", "customers", "<img src=x onerror=alert(1)>", "wörter"];
const SLOWLY: &str = "[copy]\nmax_bytes_per_second = \"64KiB\"\n[delta]\ninterval = \"200ms\"\n\
    [verify]\ncontinuous = true";

async fn pair_with_data() -> Pair {
    let pair = Pair::start().await;
    for name in NAMES {
        let collection = pair.source.client().database("shop").collection::<Document>(name);
        let text = "x".repeat(5_000);
        collection.insert_many((0..60).map(|n| doc! {"_id": n, "text": &text})).await.unwrap();
    }
    pair
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_page_shows_the_copy_and_then_follows() {
    let pair = pair_with_data().await;
    let mut daemon = Daemon::start(DaemonOptions::new(&pair.source, &pair.target).toml(SLOWLY));
    daemon.wait_state("copying").await;
    let browser = Browser::start().await;
    browser.open(&format!("http://{}/", daemon.address())).await;

    browser
        .wait("the state is shown", "document.querySelector('#state').textContent === 'copying'")
        .await;
    let part = "document.querySelector('#copy').value";
    browser.wait("the copy moves", &format!("{part} > 0 && {part} < 1")).await;
    assert_eq!(browser.label("#copy").await, "Copy");

    daemon.configure("[copy]\nmax_bytes_per_second = \"0\"");
    daemon.signal(Signal::HUP);
    daemon.wait_state("live").await;
    browser.wait("it is live", "document.title === 'snapsync: live'").await;
    let rows = format!("document.querySelectorAll('#deltas tr').length === {}", NAMES.len());
    browser.wait("every collection has a row", &rows).await;
    let names =
        browser.run("[...document.querySelectorAll('#deltas th')].map(th => th.textContent)").await;
    for name in NAMES {
        let full = format!("shop.{name}");
        assert!(names.as_array().unwrap().contains(&json!(full)), "{full} in {names}");
    }
    let points = "document.querySelector('#lag-line').getAttribute('points').split(' ').length > 2";
    browser.wait("the lag is a line", points).await;
    assert!(browser.label("#chart").await.starts_with("Now "));
    assert!(browser.text("#next").await.contains("the target follows the source"));
    assert!(browser.text("#facts").await.contains(" entries a second"));
    filters(&browser).await;
    let verified = format!(
        "document.querySelector('#verify-last').textContent.includes(' {} equal, 0 ')",
        NAMES.len()
    );
    browser.wait("all contents are verified", &verified).await;
    assert!(browser.text("#verify-text").await.starts_with("Round "));
    assert!(browser.run("document.querySelector('#cutover-section').hidden").await == json!(true));
    let rehearsal = json!({"dry_run": true, "verify": "counts"});
    assert_eq!(daemon.post("/cutover", &rehearsal).await.unwrap().status, 202);
    let rehearsed = "document.querySelector('#cutover-step').textContent.startsWith('Rehearsed')";
    browser.wait("what the rehearsal came to is shown", rehearsed).await;
    assert!(browser.text("#cutover-facts").await.contains("verification counts"));
    assert_usable(&browser).await;
    if std::env::var_os("SNAPSYNC_BLESS").is_some() {
        browser.screenshot(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/page.png")).await;
    }

    let (status, _) = daemon.terminate().await;
    assert!(status.success());
    let banner = "!document.querySelector('#trouble').hidden";
    browser.wait("a daemon that is gone is shown as such", banner).await;
    assert!(browser.text("#trouble").await.starts_with("The daemon does not answer"));
    daemon.restart();
    browser.wait("it comes back by itself", "document.querySelector('#trouble').hidden").await;
}

async fn filters(browser: &Browser) {
    let rows = "document.querySelectorAll('#deltas tr').length";
    browser.write("#filter", "ORDER").await;
    browser.wait("the filter leaves one", &format!("{rows} === 1")).await;
    let count = browser.text("#count").await;
    assert_eq!(count, format!("1 of {} collections shown", NAMES.len()));
    browser.clear("#filter").await;
    browser.click("#differing").await;
    browser.wait("nothing differs", &format!("{rows} === 0")).await;
    browser.click("#differing").await;
    browser.wait("all are back", &format!("{rows} === {}", NAMES.len())).await;
}

/// What people need who use no mouse, cannot see well, or cannot see.
async fn assert_usable(browser: &Browser) {
    for (element, label) in
        [("#filter", "Filter"), ("#differing", "only what differs"), ("#main", "")]
    {
        assert_eq!(browser.label(element).await, label, "{element}");
    }
    // Round once: the keyboard reaches everything that can be used, and a way past the head.
    let mut reached = Vec::new();
    for _ in 0..6 {
        browser.press_tab().await;
        let id = "document.activeElement.id || document.activeElement.className";
        reached.push(browser.run(id).await.as_str().unwrap().to_owned());
    }
    for wanted in ["skip", "filter", "differing", "scroll"] {
        assert!(reached.iter().any(|found| found == wanted), "{wanted} in {reached:?}");
    }
    // 4.5 is what WCAG asks for small text.
    for scheme in ["light", "dark"] {
        browser.prefer(scheme).await;
        for element in ["body", "#since", "#state", "#verify-text", "caption", "dt"] {
            let contrast = browser.contrast(element).await;
            assert!(contrast >= 4.5, "{element} in {scheme}: {contrast}");
        }
    }
    let dark = browser.run("getComputedStyle(document.body).backgroundColor").await;
    browser.prefer("light").await;
    let light = browser.run("getComputedStyle(document.body).backgroundColor").await;
    assert_ne!(dark, light);
    // Whatever the policy forbids, and every error of the script, is said here.
    let complaints = browser.complaints().await;
    assert_eq!(complaints, Vec::<Value>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_page_asks_for_the_token_where_there_is_one() {
    let pair = pair_with_data().await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    std::fs::write(&file, "a-token-of-some-length\n").unwrap();
    let toml = format!("[control]\ntoken_file = \"{}\"", file.display());
    let mut daemon = Daemon::start(DaemonOptions::new(&pair.source, &pair.target).toml(&toml));
    let browser = Browser::start().await;
    browser.open_when_served(&format!("http://{}/", daemon.address())).await;

    browser.wait("it asks", "!document.querySelector('#login').hidden").await;
    assert_eq!(browser.text("#state").await, "", "nothing is shown without the token");
    browser.write("#token", "something-else-entirely").await;
    browser.press_enter("#token").await;
    let refused =
        "document.querySelector('#trouble').textContent === 'That token is not accepted.'";
    browser.wait("a wrong one is refused", refused).await;
    browser.write("#token", "a-token-of-some-length").await;
    browser.press_enter("#token").await;
    browser
        .wait(
            "the right one shows the state",
            "document.querySelector('#state').textContent === 'live'",
        )
        .await;
    pauses_and_resumes(&browser).await;
    shows_what_is_copied_again(&browser, &mut daemon, &pair).await;
}

/// With the token something can be done here too, by keyboard as well.
async fn pauses_and_resumes(browser: &Browser) {
    let disabled = "document.querySelector('#resume').disabled";
    browser.wait("there is nothing to resume", disabled).await;
    browser.press_enter("#pause").await;
    browser.wait("it is paused", "document.querySelector('#state').textContent === 'paused'").await;
    let done = "document.querySelector('#answer').textContent === 'Done: pause'";
    browser.wait("it is answered", done).await;
    assert!(browser.text("#next").await.contains("snapsync resume"));
    browser.wait("no second pause", "document.querySelector('#pause').disabled").await;
    browser.click("#resume").await;
    browser.wait("it follows", "document.querySelector('#state').textContent === 'live'").await;
}

async fn shows_what_is_copied_again(browser: &Browser, daemon: &mut Daemon, pair: &Pair) {
    daemon.configure("[copy]\nmax_bytes_per_second = \"64KiB\"");
    daemon.signal(Signal::HUP);
    daemon.wait_log("configuration reloaded").await;
    let reply = daemon.post("/resync", &json!({"namespaces": ["shop.orders"]})).await.unwrap();
    assert_eq!(reply.status, 202, "{}", reply.body);
    assert_eq!(reply.json()["copying"], json!(["shop.orders"]));
    let again = "document.querySelector('#next').textContent.includes('these collections on the target: shop.orders')";
    browser.wait("what not to use is named", again).await;
    let title = "document.querySelector('#copy-title').textContent === 'Copied again' \
        && !document.querySelector('#copy-section').hidden";
    browser.wait("how far it is", title).await;
    // A halt says why, and what to do.
    let other = pair.target.client().database("shop").collection::<Document>("foreign");
    other.insert_one(doc! {"_id": 1}).await.unwrap();
    browser.wait("a halt", "document.querySelector('#state').textContent === 'halted'").await;
    assert!(browser.text("#reason").await.contains("shop.foreign"));
    assert!(browser.text("#next").await.contains("then: snapsync resume"));
}
