//! Results side by side: medians and spread of each contender, and ratios within the same round.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::measure::quantile;

/// The contender that all others are compared with.
pub const SUBJECT: &str = "snapsync";

/// Runs of one scenario.
#[derive(Debug, Default)]
pub struct Rounds {
    /// By contender, in the order of their first run.
    runs: Vec<(String, Vec<Value>)>,
}

impl Rounds {
    /// Adds one run.
    pub fn add(&mut self, contender: &str, run: Value) {
        eprintln!("  {contender}: {:.2} s", run["seconds"].as_f64().unwrap_or(f64::NAN));
        match self.runs.iter_mut().find(|(name, _)| name == contender) {
            Some((_, runs)) => runs.push(run),
            None => self.runs.push((contender.to_owned(), vec![run])),
        }
    }

    /// All runs, their medians and spread, and how many times as much of everything each contender took as snapsync did
    /// in the same round.
    pub fn summary(self) -> Value {
        let subject = self.runs.iter().find(|(name, _)| name == SUBJECT);
        let subject = subject.map(|(_, runs)| runs.clone()).unwrap_or_default();
        let mut all = Map::new();
        for (name, runs) in self.runs {
            let mut entry = json!({ "median": over(&runs, |value, _| Some(value)) });
            if name != SUBJECT {
                let ratio = |value: f64, (field, round): (&str, usize)| {
                    Some(value / subject.get(round)?[field].as_f64()?).filter(|x| x.is_finite())
                };
                entry["times_snapsync"] = over(&runs, ratio);
            }
            entry["runs"] = runs.into();
            all.insert(name, entry);
        }
        all.into()
    }
}

/// Median, least and most of every number of the runs, after `map`.
fn over(runs: &[Value], map: impl Fn(f64, (&str, usize)) -> Option<f64>) -> Value {
    let mut fields: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for (round, run) in runs.iter().enumerate() {
        for (field, value) in run.as_object().into_iter().flatten() {
            let value = value.as_f64().and_then(|value| map(value, (field, round)));
            fields.entry(field).or_default().extend(value);
        }
    }
    let mut result = Map::new();
    for (field, mut values) in fields {
        if values.is_empty() {
            continue;
        }
        values.sort_by(f64::total_cmp);
        let of = |share| rounded(quantile(&values, share));
        let entry = json!([rounded(median(&values)), of(0.0), of(1.0)]);
        result.insert(field.to_owned(), entry);
    }
    result.into()
}

fn median(sorted: &[f64]) -> f64 {
    let at = |place: usize| sorted.get(place).copied().unwrap_or(f64::NAN);
    (at(sorted.len().saturating_sub(1) / 2) + at(sorted.len() / 2)) / 2.0
}

fn rounded(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

/// What is shown of a scenario: a line for each contender with median, least and most of what matters most; as it is,
/// where it is of another form. Everything is in the file.
pub fn table(result: &Value) -> String {
    const SHOWN: [&str; 5] = [
        "seconds",
        "tool_cpu_seconds",
        "tool_peak_mib",
        "source_cpu_seconds",
        "target_cpu_seconds",
    ];
    let mut text = String::new();
    for (name, entry) in result.as_object().into_iter().flatten() {
        let Some(median) = entry.get("median") else { continue };
        text += &format!("  {name}\n");
        for (title, values) in [("", median), ("times snapsync's: ", &entry["times_snapsync"])] {
            let shown = SHOWN.iter().filter_map(|field| {
                let [middle, least, most] = values.get(field)?.as_array()?.as_slice() else {
                    return None;
                };
                Some(format!("{field} {middle} [{least}-{most}]"))
            });
            let shown: Vec<String> = shown.collect();
            if !shown.is_empty() {
                text += &format!("    {title}{}\n", shown.join(", "));
            }
        }
    }
    if text.is_empty() { format!("{result:#}") } else { text }
}

/// What the results depend on.
pub fn machine(server: &str) -> Value {
    let cpus = std::thread::available_parallelism().map_or(0, std::num::NonZeroUsize::get);
    let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total = memory.lines().next().unwrap_or_default().split_whitespace().nth(1);
    let total = total.and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0);
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let model = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = model.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or_default();
    json!({
        "processors": cpus,
        "model": model.trim_start_matches([' ', '\t', ':']),
        "memory_gib": total / 1024 / 1024,
        "load_at_start": load.split(' ').next().unwrap_or_default(),
        "mongod": server,
        "snapsync": env!("CARGO_PKG_VERSION"),
    })
}
