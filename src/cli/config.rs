//! `snapsync config [--check] [--json]`: the effective configuration and where each value came from, or whether it is
//! valid. Connects to nothing, so that a unit's `ExecReload` can call it first.

use std::io::{self, Write};

use serde_json::json;

use crate::config::{Config, ConfigErrors, EffectiveSetting, Inputs, Loaded};

/// Exit code for a valid configuration.
const DONE: u8 = 0;
/// Exit code for wrong usage: a password in an argument.
const USAGE: u8 = 64;
/// Exit code for an invalid configuration.
const INVALID: u8 = 78;

/// What was asked for.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Only say whether the configuration is valid.
    pub check: bool,
    /// Print JSON: `{"valid", "file", "errors": [{"key", "place", "message"}], "warnings": [""],
    /// "settings": [{"key", "value", "origin"}]}`, with `settings` empty under `check` or when not valid.
    pub json: bool,
}

/// Loads the configuration and prints it, or what is wrong with it; gives the exit code.
///
/// In text, errors and warnings go to `err` and the rest to `out`; as JSON everything is one document on `out`.
///
/// # Errors
///
/// When `out` or `err` cannot be written to.
pub fn run(
    inputs: &Inputs,
    options: Options,
    out: &mut impl Write,
    err: &mut impl Write,
) -> io::Result<u8> {
    let result = Config::load(inputs);
    let code = match &result {
        Ok(_) => DONE,
        Err(errors) if options.check && errors.only_hidden_credentials() => DONE,
        Err(errors) if errors.has_password_argument() => USAGE,
        Err(_) => INVALID,
    };
    if options.json {
        print_json(inputs, &result, options.check, out)?;
    } else {
        print_text(inputs, &result, options.check, out, err)?;
    }
    Ok(code)
}

fn print_text(
    inputs: &Inputs,
    result: &Result<Loaded, ConfigErrors>,
    check: bool,
    out: &mut impl Write,
    err: &mut impl Write,
) -> io::Result<()> {
    let loaded = match result {
        Ok(loaded) => loaded,
        Err(errors) if check && errors.only_hidden_credentials() => {
            writeln!(err, "{errors}")?;
            return writeln!(out, "{}: the configuration is valid", inputs.file.display());
        }
        Err(errors) => return writeln!(err, "{errors}"),
    };
    for warning in &loaded.warnings {
        writeln!(err, "warning: {warning}")?;
    }
    if check {
        return writeln!(out, "{}: the configuration is valid", inputs.file.display());
    }
    let settings = loaded.config.effective();
    let width = |text: fn(&EffectiveSetting) -> &str| {
        settings.iter().map(|setting| text(setting).chars().count()).max().unwrap_or_default()
    };
    let (keys, values) = (width(|setting| setting.key), width(|setting| &setting.value));
    for EffectiveSetting { key, value, origin } in &settings {
        writeln!(out, "{key:keys$}  {value:values$}  {origin}")?;
    }
    Ok(())
}

fn print_json(
    inputs: &Inputs,
    result: &Result<Loaded, ConfigErrors>,
    check: bool,
    out: &mut impl Write,
) -> io::Result<()> {
    let errors: Vec<_> = match result {
        Ok(_) => Vec::new(),
        Err(errors) => errors
            .0
            .iter()
            .map(|error| {
                let (place, message) = (error.origin.to_string(), error.problem.to_string());
                json!({ "key": error.key, "place": place, "message": message })
            })
            .collect(),
    };
    let hidden = result.as_ref().is_err_and(ConfigErrors::only_hidden_credentials);
    let valid = result.is_ok() || (check && hidden);
    let loaded = result.as_ref().ok();
    let settings = loaded.filter(|_| !check).map_or(Vec::new(), |loaded| loaded.config.effective());
    let document = json!({
        "valid": valid,
        "file": inputs.file,
        "errors": errors,
        "warnings": loaded.map_or(&[][..], |loaded| &loaded.warnings),
        "settings": settings,
    });
    writeln!(out, "{document:#}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inputs(overrides: &[(&str, &str)]) -> Inputs {
        let pair = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        Inputs {
            file: "/nowhere/snapsync.toml".into(),
            file_required: false,
            env: vec![
                ("SNAPSYNC__SOURCE__URI".to_owned(), "mongodb://u:hunter2@a".to_owned()),
                ("SNAPSYNC__TARGET__URI".to_owned(), "mongodb://b".to_owned()),
            ],
            overrides: overrides.iter().map(pair).collect(),
            credentials_directory: None,
        }
    }

    fn outcome(overrides: &[(&str, &str)], check: bool, json: bool) -> (u8, String, String) {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let options = Options { check, json };
        let code = run(&inputs(overrides), options, &mut out, &mut err).unwrap();
        let (out, err) = (String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap());
        assert!(!out.contains("hunter2") && !err.contains("hunter2"), "{out}{err}");
        (code, out, err)
    }

    #[test]
    fn prints_each_value_with_its_origin() {
        let (code, out, err) = outcome(&[("sync.window", "2000ms")], false, false);
        assert_eq!((code, err.as_str()), (0, ""));
        let line = |key: &str| {
            let line = out.lines().find(|line| line.starts_with(&format!("{key} "))).unwrap();
            line.split_whitespace().skip(1).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(
            line("source.uri"),
            "mongodb://u:***@a environment variable SNAPSYNC__SOURCE__URI"
        );
        assert_eq!(line("sync.window"), "2s flag --set sync.window");
        assert_eq!(line("live.max_lag"), "10s default");
    }

    #[test]
    fn a_check_says_valid_or_all_that_is_wrong() {
        let (code, out, err) = outcome(&[], true, false);
        assert_eq!(
            (code, out.as_str(), err.as_str()),
            (0, "/nowhere/snapsync.toml: the configuration is valid\n", "")
        );
        let (code, out, err) =
            outcome(&[("sync.widnow", "1s"), ("copy.workers", "x")], true, false);
        assert_eq!((code, out.as_str(), err.lines().count()), (78, "", 2));
    }

    /// What `systemctl reload` runs first cannot look into the directory of the credentials before systemd 254. Root
    /// may look everywhere, so the other half is in the test on a booted systemd.
    #[test]
    fn a_check_says_what_it_could_not_look_at() {
        let hidden = ConfigErrors(vec![crate::config::ConfigError {
            key: "target.uri".to_owned(),
            origin: crate::config::Origin::Credential("/run/credentials/x".into()),
            problem: crate::config::Problem::CredentialHidden,
        }]);
        let told = |check| {
            let (mut out, mut err) = (Vec::new(), Vec::new());
            print_text(&inputs(&[]), &Err(hidden.clone()), check, &mut out, &mut err).unwrap();
            (String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap())
        };
        assert!(told(true).0.ends_with("the configuration is valid\n"));
        assert!(told(true).1.contains("was not checked"));
        assert_eq!(told(false).0, "");
    }

    #[test]
    fn a_password_in_an_argument_is_wrong_usage() {
        let overrides = [("source.uri", "mongodb://u:hunter2@a"), ("copy.workers", "x")];
        assert_eq!(outcome(&overrides, false, false).0, 64);
    }

    #[test]
    fn the_json_has_its_documented_shape() {
        let (code, out, err) = outcome(&[], false, true);
        assert_eq!((code, err.as_str()), (0, ""));
        let document: serde_json::Value = serde_json::from_str(&out).unwrap();
        assert_eq!(document["valid"], true);
        assert_eq!(
            document["settings"][0],
            json!({
                "key": "source.uri",
                "value": "mongodb://u:***@a",
                "origin": "environment variable SNAPSYNC__SOURCE__URI",
            })
        );
        let (code, out, _) = outcome(&[("copy.workers", "65")], true, true);
        let document: serde_json::Value = serde_json::from_str(&out).unwrap();
        assert_eq!(code, 78);
        assert_eq!(
            document,
            json!({
                "valid": false,
                "file": "/nowhere/snapsync.toml",
                "errors": [{
                    "key": "copy.workers",
                    "place": "flag --set copy.workers",
                    "message": "65 is out of range; it can be 0 to 64",
                }],
                "warnings": [],
                "settings": [],
            })
        );
    }
}
