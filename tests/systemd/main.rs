//! The package on a booted systemd, from installation to purge, between two real servers, one of them over TLS.
//! `make test-systemd` runs this, as root. With `SNAPSYNC_BLESS` set it writes `docs/systemd-transcript.md` anew.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    clippy::print_stderr,
    unreachable_pub,
    reason = "test helpers panic with what went wrong"
)]

#[allow(dead_code, unused_imports, reason = "shared with other tests: each uses a part")]
#[path = "../it/harness/mod.rs"]
mod harness;
mod machine;

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use bson::{Document, doc};
use serde_json::Value;

use harness::{Authority, ReplicaSet, ReplicaSetOptions, assert_equal, resume_point, wait_for};
use machine::Machine;

const COPY_STARTED: &str = "57aa6407d56c4d09a1e2e50b77f4f1ed";
const STATE_CHANGED: &str = "36ce33b955384b15a4800ab05d6a8c2b";

/// Shorter than in production, or the test would mostly wait.
const DROP_IN: &str = "[Service]\nRestartSec=1s\nWatchdogSec=10s\n";

fn top() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The version of the program.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// An earlier one, as long in bytes.
fn earlier_version() -> String {
    VERSION.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect()
}

/// Builds a package, and puts it as `new.deb` (or `.rpm`) into `folder`.
fn package(kind: &str, folder: &Path) {
    let made = Command::new(top().join("scripts/package.sh"))
        .arg(kind)
        .env("PROFILE", "dev")
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let file = top().join(String::from_utf8(made.stdout).unwrap().trim());
    std::fs::copy(&file, folder.join("new").with_extension(kind)).unwrap();
    std::fs::remove_file(file).unwrap();
}

fn take_rpm_through_its_life(package: &Path) {
    let script = top().join("tests/systemd/rpm.sh");
    let run = Command::new(script).arg(machine::cache()).arg(package).output().unwrap();
    let said = String::from_utf8_lossy(&run.stdout);
    let errors = String::from_utf8_lossy(&run.stderr);
    assert!(run.status.success() && said.ends_with("rpm: ok\n"), "{said}{errors}");
}

/// Makes `old.deb` of it: what an earlier release would be, with a program, a unit and a file of its own.
fn package_of_before(folder: &Path) {
    let earlier = earlier_version();
    assert_ne!(earlier, VERSION);
    let script = format!(
        "export LC_ALL=C
         dpkg-deb --raw-extract new.deb old
         sed -i 's/^Version: .*/Version: {earlier}-1/' old/DEBIAN/control
         sed -i 's/{}/{earlier}/g' old/usr/bin/snapsync
         sed -i 's/^Description=/&Before: /' old/usr/lib/systemd/system/*.service
         sed -i '1s/^/# As of before.\\n/' old/etc/snapsync/snapsync.toml
         echo before >old/usr/share/doc/snapsync/of-before
         rm old/DEBIAN/md5sums
         dpkg-deb --root-owner-group -Zgzip -z1 --build old old.deb
         rm -rf old",
        VERSION.replace('.', "\\.")
    );
    let made = Command::new("bash").args(["-euc", &script]).current_dir(folder).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}

async fn insert(source: &ReplicaSet, from: i32) {
    let orders = source.client().database("shop").collection::<Document>("orders");
    orders.insert_many((from..from + 500).map(|n| doc! {"_id": n, "at": n})).await.unwrap();
}

/// What the daemon says, asked by its own command.
fn status(machine: &Machine) -> Result<Value, String> {
    let (text, code) = machine.try_run("snapsync status --json");
    if code != 0 {
        return Err(text);
    }
    serde_json::from_str(&text).map_err(|error| format!("{error}: {text}"))
}

/// Waits until everything on the source is durably applied.
async fn level(machine: &Machine, source: &ReplicaSet, target: &ReplicaSet) -> Value {
    let end = source.majority_ts().await;
    let status = wait_for("the target is level", Duration::from_secs(120), || async {
        let status = status(machine)?;
        let there = resume_point(&status) >= end && status["state"] == "live";
        if there { Ok(status) } else { Err(status.to_string()) }
    })
    .await;
    assert_equal(source, target).await;
    status
}

/// How often a copy has begun since the machine was booted.
fn copies(machine: &Machine) -> usize {
    machine.run(&format!("journalctl -o cat --no-pager MESSAGE_ID={COPY_STARTED}")).lines().count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn from_installation_to_purge() {
    let folder = tempfile::tempdir().unwrap();
    let packages = folder.path().join("packages");
    std::fs::create_dir(&packages).unwrap();
    let into = packages.clone();
    let packaging = tokio::task::spawn_blocking(move || {
        package("deb", &into);
        package_of_before(&into);
        package("rpm", &into);
    });
    let log = folder.path().join("boot.log");
    let (mut machine, packaged) = tokio::join!(Machine::boot(&packages, &log), packaging);
    packaged.unwrap();
    let linting = tokio::task::spawn_blocking(move || {
        lint(&packages.join("new.deb"));
        // In the same base system, which the first boot makes.
        take_rpm_through_its_life(&packages.join("new.rpm"));
    });
    let authority = Authority::new();
    let source = ReplicaSet::start(ReplicaSetOptions::default().tls(&authority)).await;
    let target = ReplicaSet::single().await;
    insert(&source, 0).await;

    installs(&mut machine);
    is_locked_down(&mut machine);
    refuses_to_start_unconfigured(&mut machine);
    configure(&mut machine, &source, &target, &authority);
    starts(&mut machine, &source, &target).await;
    answers_the_journal(&mut machine);
    stops_and_goes_on(&mut machine, &source, &target).await;
    survives_a_kill(&mut machine, &source, &target).await;
    is_restarted_by_the_watchdog(&mut machine, &source, &target).await;
    does_not_wait_for_the_journal(&mut machine, &source, &target).await;
    refuses_a_bad_reload(&mut machine);
    an_instance_follows(&mut machine, &source, &target).await;
    is_upgraded(&mut machine, &source, &target).await;
    makes_snapshots(&mut machine, &source, &target).await;
    is_removed_and_purged(&mut machine);
    linting.await.unwrap();
    if std::env::var_os("SNAPSYNC_BLESS").is_some() {
        write_transcript(machine.transcript());
    }
}

fn write_transcript(transcript: &str) {
    let mut text = String::from(
        "# On a booted systemd\n\nWritten by `SNAPSYNC_BLESS=1 make test-systemd`: the package on a Debian 12, between \
         two real servers, the source over TLS.\n",
    );
    for section in transcript.split("## ").skip(1) {
        let (title, commands) = section.split_once('\n').unwrap();
        let commands = commands.trim().replace("\n# ", "\n$ ");
        let commands =
            commands.strip_prefix("# ").map_or(commands.clone(), |rest| format!("$ {rest}"));
        text += &format!("\n## {title}\n\n```console\n{commands}\n```\n");
    }
    std::fs::write(top().join("docs/systemd-transcript.md"), text).unwrap();
}

fn lint(package: &Path) {
    let lintian =
        Command::new("lintian").args(["--fail-on", "error,warning"]).arg(package).output();
    let lintian = lintian.expect("lintian is missing: apt-get install lintian");
    assert!(lintian.status.success(), "{}", String::from_utf8_lossy(&lintian.stdout));
}

fn installs(machine: &mut Machine) {
    machine.say("Install");
    machine.show("apt-get install -y /packages/old.deb 2>&1 | tail -n 3");
    assert_eq!(machine.show_failing("systemctl is-enabled snapsync"), "disabled");
    assert_eq!(machine.show_failing("systemctl is-active snapsync"), "inactive");
    let modes = machine.show("stat -c '%a %U:%G %n' /etc/snapsync /etc/snapsync/snapsync.toml");
    assert_eq!(
        modes,
        "750 root:snapsync /etc/snapsync\n640 root:snapsync /etc/snapsync/snapsync.toml"
    );
    assert!(machine.show("getent passwd snapsync").contains(":/var/lib/snapsync:"));
    for file in [
        "man/man1/snapsync-run.1.gz",
        "man/man5/snapsync.toml.5.gz",
        "bash-completion/completions/snapsync",
    ] {
        machine.run(&format!("dpkg -L snapsync | grep -q /usr/share/{file}"));
    }
}

fn is_locked_down(machine: &mut Machine) {
    machine.say("As locked down as can be");
    for unit in ["snapsync.service", "snapsync@shop.service", "snapsync-snapshot@shop.service"] {
        machine.run(&format!("systemd-analyze --man=no verify {unit}"));
        let shown = machine
            .show(&format!("systemd-analyze security --no-pager {unit} | grep -E '^✗|Overall'"));
        let score = shown.rsplit(": ").next().unwrap().split(' ').next().unwrap();
        assert!(score.parse::<f64>().unwrap() <= 2.0, "{shown}");
    }
}

fn refuses_to_start_unconfigured(machine: &mut Machine) {
    machine.say("A start before anything is configured fails, says why, and is not tried again");
    machine.run(&format!(
        "mkdir -p /etc/systemd/system/snapsync.service.d && printf '{}' \
         >/etc/systemd/system/snapsync.service.d/test.conf && systemctl daemon-reload",
        DROP_IN.replace('\n', "\\n")
    ));
    machine.show_failing("systemctl start snapsync");
    let shown = machine
        .show("systemctl show snapsync --property ActiveState,Result,ExecMainStatus,NRestarts");
    for line in ["Result=exit-code", "NRestarts=0", "ExecMainStatus=78", "ActiveState=failed"] {
        assert!(shown.lines().any(|found| found == line), "{line} in {shown}");
    }
    let told = machine.show("journalctl -u snapsync -p err -o cat --no-pager | grep connection");
    assert!(told.contains("no connection string for the source"), "{told}");
}

fn configure(machine: &mut Machine, source: &ReplicaSet, target: &ReplicaSet, tls: &Authority) {
    machine.say("One side in the file, the other as a credential that only root can read");
    let certificate = std::fs::read_to_string(tls.certificate()).unwrap();
    machine.run(&format!("printf '%s' '{certificate}' >/etc/snapsync/ca.pem"));
    let uri = format!("{}&tls=true&tlsCAFile=/etc/snapsync/ca.pem", source.uri());
    machine.run(&format!(
        "sed -i 's|^# uri = .*source-1.*|uri = \"{}\"|' /etc/snapsync/snapsync.toml",
        uri.replace('&', "\\&")
    ));
    machine.run("sed -i 's|^# include = .*|include = [\"shop\"]|' /etc/snapsync/snapsync.toml");
    machine.run("printf '\\n[delta]\\ninterval = \"1s\"\\n[control]\\nlisten = \"\"\\n' >>/etc/snapsync/snapsync.toml");
    machine.run(&format!("umask 077; printf '%s\\n' '{}' >/etc/snapsync/target-uri", target.uri()));
    machine.show(
        "grep -n ^uri /etc/snapsync/snapsync.toml; stat -c '%a %U %n' /etc/snapsync/target-uri",
    );
    machine.run("systemctl reset-failed snapsync");
}

async fn starts(machine: &mut Machine, source: &ReplicaSet, target: &ReplicaSet) {
    machine.say("Start");
    machine.show("systemctl enable --now snapsync");
    level(machine, source, target).await;
    machine.wait("systemctl show snapsync --property StatusText", "live").await;
    machine.show("systemctl status snapsync --no-pager | head -n 14");
    machine.show("snapsync status | head -n 14");
    assert_eq!(copies(machine), 1);
}

/// The questions of `docs/journal.md`.
fn answers_the_journal(machine: &mut Machine) {
    machine.say("Ask the journal");
    let page = std::fs::read_to_string(top().join("docs/journal.md")).unwrap();
    let asked: Vec<&str> = page.lines().filter(|line| line.starts_with("journalctl ")).collect();
    assert!(asked.len() > 6, "{asked:?}");
    for line in asked {
        let question = line.split("  #").next().unwrap().trim().replace(" -fu ", " -u ");
        let (answer, code) = machine.try_run(&format!("{question} --no-pager"));
        assert!(code == 0 || answer.contains("-- No entries --"), "{question}: {answer}");
    }
    let orders = machine
        .show("journalctl -u snapsync --no-pager -n 1 -o cat SNAPSYNC_COLLECTION=shop.orders");
    assert!(
        orders.ends_with("delta: 0, source: 500, target: 500, collection: shop.orders"),
        "{orders}"
    );
    let states = machine.show(&format!("journalctl --no-pager -o cat MESSAGE_ID={STATE_CHANGED}"));
    assert!(states.contains("state: catching-up -> live"), "{states}");
    let entry =
        machine.run(&format!("journalctl --no-pager -n 1 -o json MESSAGE_ID={COPY_STARTED}"));
    let entry: Value = serde_json::from_str(&entry).unwrap();
    assert_eq!(entry["PRIORITY"], "6");
    assert_eq!(entry["SYSLOG_IDENTIFIER"], "snapsync");
    assert_eq!(entry["SNAPSYNC_COLLECTIONS"], "1");
    let explained =
        machine.show(&format!("journalctl -x --no-pager -n 1 MESSAGE_ID={COPY_STARTED}"));
    assert!(explained.contains("Subject: The copy begins"), "{explained}");
}

async fn stops_and_goes_on(machine: &mut Machine, source: &ReplicaSet, target: &ReplicaSet) {
    machine.say("Stop, and go on without a copy");
    let begun = Instant::now();
    machine.show("systemctl stop snapsync");
    let took = begun.elapsed();
    machine.say(&format!("It took {:.1} s", took.as_secs_f64()));
    assert!(took < Duration::from_secs(5), "the stop took {took:?}");
    assert_eq!(machine.property("Result"), "success");
    insert(source, 1000).await;
    machine.show("systemctl start snapsync");
    level(machine, source, target).await;
    let lines = machine
        .show("journalctl -u snapsync --no-pager -n 40 -o cat | grep -E '^(snapsync|state|stop)'");
    assert!(lines.contains("stopped"), "{lines}");
    assert_eq!(copies(machine), 1);
}

async fn survives_a_kill(machine: &mut Machine, source: &ReplicaSet, target: &ReplicaSet) {
    machine.say("kill -9");
    let before: u32 = machine.property("NRestarts").parse().unwrap();
    machine.show("systemctl kill --signal KILL snapsync");
    insert(source, 2000).await;
    machine.wait("systemctl show snapsync --property NRestarts", &format!("={}", before + 1)).await;
    level(machine, source, target).await;
    machine.show("systemctl show snapsync --property ActiveState,NRestarts");
    assert_eq!(copies(machine), 1);
}

async fn is_restarted_by_the_watchdog(
    machine: &mut Machine,
    source: &ReplicaSet,
    target: &ReplicaSet,
) {
    machine.say("A daemon that does not answer is ended by the watchdog, and started again");
    let before: u32 = machine.property("NRestarts").parse().unwrap();
    machine.show("systemctl kill --signal STOP snapsync");
    insert(source, 3000).await;
    machine.wait("systemctl show snapsync --property NRestarts", &format!("={}", before + 1)).await;
    level(machine, source, target).await;
    let told = machine.show("journalctl --no-pager -o cat -u snapsync | grep -i watchdog");
    assert!(told.contains("Watchdog timeout"), "{told}");
    assert_eq!(copies(machine), 1);
}

async fn does_not_wait_for_the_journal(
    machine: &mut Machine,
    source: &ReplicaSet,
    target: &ReplicaSet,
) {
    machine.say("A journal that stands still does not stall the sync");
    let before = machine.property("NRestarts");
    machine.show("systemctl kill --signal STOP systemd-journald");
    for round in 0..3 {
        insert(source, 4000 + 500 * round).await;
        level(machine, source, target).await;
    }
    machine.show("systemctl kill --signal CONT systemd-journald");
    assert_eq!(machine.property("NRestarts"), before);
    machine
        .wait("journalctl --sync; journalctl -u snapsync -n 20 -o cat --no-pager", "source: 3500")
        .await;
}

fn refuses_a_bad_reload(machine: &mut Machine) {
    machine.say("A reload of a bad file fails and changes nothing");
    let process = machine.property("MainPID");
    machine.run(
        "cp -p /etc/snapsync/snapsync.toml /var/tmp/good; echo '[copi]' >>/etc/snapsync/snapsync.toml",
    );
    machine.run("echo 'workers = 2' >>/etc/snapsync/snapsync.toml");
    machine.show_failing("systemctl reload snapsync");
    machine.run("cat /var/tmp/good >/etc/snapsync/snapsync.toml");
    machine.show("systemctl reload snapsync");
    assert_eq!(machine.property("MainPID"), process);
    assert_eq!(machine.property("ActiveState"), "active");
}

/// A second migration between the same servers, with a state and a program of its own.
async fn an_instance_follows(machine: &mut Machine, source: &ReplicaSet, target: &ReplicaSet) {
    machine.say("A second migration on the same machine");
    let uri = format!("{}&tls=true&tlsCAFile=/etc/snapsync/ca.pem", source.uri());
    let file = format!(
        "[source]\nuri = \"{uri}\"\n[target]\nuri = \"{}\"\n[sync]\ninclude = [\"crm\"]\n[control]\nlisten = \"\"\n",
        target.uri()
    );
    machine.run(&format!("umask 027; printf '%s' '{file}' >/etc/snapsync/crm.toml"));
    machine.run("chgrp snapsync /etc/snapsync/crm.toml");
    let people = source.client().database("crm").collection::<Document>("people");
    people.insert_one(doc! {"_id": 1}).await.unwrap();
    machine.show("systemctl enable --now snapsync@crm");
    machine.wait(INSTANCE, "live").await;
    machine.show("snapsync status --config /etc/snapsync/crm.toml | tail -n 3");
}

/// Once by hand, and every night.
async fn makes_snapshots(machine: &mut Machine, source: &ReplicaSet, target: &ReplicaSet) {
    machine.say("A snapshot, and one every night");
    let uri = format!("{}&tls=true&tlsCAFile=/etc/snapsync/ca.pem", source.uri());
    let file = format!(
        "[source]\nuri = \"{uri}\"\n[target]\nuri = \"{}\"\n[snapshot]\nsource_database = \"crm\"\n\
         target_database = \"preview\"\n",
        target.uri()
    );
    machine.run(&format!("umask 027; printf '%s' '{file}' >/etc/snapsync/nightly.toml"));
    machine.run("chgrp snapsync /etc/snapsync/nightly.toml");
    machine.show("systemctl start snapsync-snapshot@nightly");
    let told = machine
        .show("journalctl -u snapsync-snapshot@nightly -o cat --no-pager | grep 'the snapshot in'");
    assert!(told.contains("is complete: 2 documents in 1 collections"), "{told}");
    let copied = target.client().database("preview").collection::<Document>("people");
    assert_eq!(copied.count_documents(doc! {}).await.unwrap(), 2);
    machine.show("systemctl enable --now snapsync-snapshot@nightly.timer");
    let due = machine.show("systemctl list-timers --no-pager --no-legend 'snapsync-snapshot@*'");
    assert!(due.contains("snapsync-snapshot@nightly.timer"), "{due}");
}

const INSTANCE: &str = "systemctl show snapsync@crm --property StatusText";

async fn is_upgraded(machine: &mut Machine, source: &ReplicaSet, target: &ReplicaSet) {
    machine.say("Upgrade");
    let of = |machine: &Machine| {
        ["snapsync", "snapsync@crm"]
            .map(|unit| machine.run(&format!("systemctl show {unit} --value --property MainPID")))
    };
    let before = of(machine);
    machine.run("cp /etc/snapsync/snapsync.toml /var/tmp/before");
    // The new package has another stub, and this one was edited: dpkg asks, and keeps it unless told otherwise.
    let asked = machine.show("echo | dpkg -i /packages/new.deb 2>&1 | grep -E '^(Conf| ==>|Sett)'");
    assert!(asked.contains("Configuration file '/etc/snapsync/snapsync.toml'"), "{asked}");
    assert!(asked.contains(" ==> Modified (by you or by a script) since installation."), "{asked}");
    let offered = machine.show("stat -c '%a %U:%G %n' /etc/snapsync/snapsync.toml*");
    let stub = "/etc/snapsync/snapsync.toml";
    assert_eq!(offered, format!("640 root:snapsync {stub}\n640 root:snapsync {stub}.dpkg-dist"));
    machine.run("! grep -q 'As of before' /etc/snapsync/snapsync.toml.dpkg-dist");
    machine.run("! grep -q etc/snapsync /var/lib/dpkg/info/snapsync.md5sums");
    // Nothing differs from what was installed but what is meant to be edited.
    assert_eq!(machine.run("dpkg --verify snapsync | grep -v ' c /etc/' || true"), "");
    assert_eq!(machine.show("systemctl is-active snapsync"), "active");
    assert_eq!(machine.run("systemctl is-enabled snapsync"), "enabled");
    for (unit, (before, now)) in before.iter().zip(of(machine)).enumerate() {
        assert_ne!(*before, now, "the old program still runs ({unit})");
        machine.run(&format!("test \"$(readlink /proc/{now}/exe)\" = /usr/bin/snapsync"));
    }
    machine.run("cmp /var/tmp/before /etc/snapsync/snapsync.toml");
    machine.run("! test -e /usr/share/doc/snapsync/of-before");
    let description = machine.property("Description");
    assert!(description.starts_with("Keeps one"), "systemd was not told: {description}");
    insert(source, 6000).await;
    let people = source.client().database("crm").collection::<Document>("people");
    people.insert_one(doc! {"_id": 2}).await.unwrap();
    machine.wait(INSTANCE, "live").await;
    machine
        .wait("snapsync status --json --config /etc/snapsync/crm.toml", "\"source\":2,\"target\":2")
        .await;
    level(machine, source, target).await;
    let started = machine
        .show("journalctl -u snapsync -o cat --no-pager | grep -E '^snapsync .* starts' | uniq");
    assert_eq!(
        started,
        format!("snapsync {} starts\nsnapsync {VERSION} starts", earlier_version())
    );
    // One for each migration.
    assert_eq!(copies(machine), 2);
}

fn is_removed_and_purged(machine: &mut Machine) {
    machine.say("Remove keeps, purge takes");
    machine.show("apt-get remove -y snapsync 2>&1 | tail -n 1");
    machine.run("! ls -l /proc/[0-9]*/exe 2>/dev/null | grep /usr/bin/snapsync");
    machine.show("ls /etc/snapsync /var/lib/snapsync");
    machine.run("test -s /etc/snapsync/snapsync.toml && test -e /var/lib/snapsync/position");
    let enabled = "/etc/systemd/system/multi-user.target.wants/snapsync@crm.service";
    machine.run(&format!("test -L {enabled}"));
    machine.show("apt-get purge -y snapsync 2>&1 | tail -n 1");
    machine.show("ls -d /etc/snapsync/* /var/lib/snapsync /usr/bin/snapsync 2>&1 || true");
    machine.run("! test -e /var/lib/snapsync && ! test -e /etc/snapsync/snapsync.toml && ! test -e /usr/bin/snapsync");
    machine.run("! find /etc/systemd -name 'snapsync*.service' | grep .");
    machine.run("! find /etc/systemd -name 'snapsync*.timer' | grep .");
    machine.run("! ls /etc/snapsync | grep dpkg");
    // An administrator's own files are an administrator's.
    machine.run("test -e /etc/snapsync/target-uri");
}
