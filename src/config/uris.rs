//! Finding each side's connection string: in a key, in a file that a key names, or in a systemd credential.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::error::{Origin, Problem};
use super::layers::{self, Inputs, Layered, unreadable};
use super::secret::Uri;
use super::value::Value;

/// The names that belong to one side's connection string.
pub(super) struct Side {
    name: &'static str,
    uri: &'static str,
    pub(super) uri_file: &'static str,
    credential: &'static str,
}

/// The source's.
pub(super) const SOURCE: Side = Side {
    name: "source",
    uri: "source.uri",
    uri_file: "source.uri_file",
    credential: "source-uri",
};

/// The target's.
pub(super) const TARGET: Side = Side {
    name: "target",
    uri: "target.uri",
    uri_file: "target.uri_file",
    credential: "target-uri",
};

/// Finds a side's connection string and makes it the setting of its `uri` key. `None` after an error.
pub(super) fn resolve_uri(inputs: &Inputs, side: &Side, layered: &mut Layered) -> Option<Uri> {
    if layered.failed.contains(side.uri) || layered.failed.contains(side.uri_file) {
        return None;
    }
    let settings = &layered.settings;
    let (path, origin) = match (settings.uri(side.uri), settings.path(side.uri_file)) {
        (Some(_), Some(_)) => {
            let (here, there) = (settings.get(side.uri_file), settings.get(side.uri));
            let text = format!("{} is given as well ({}); keep one", side.uri, there.origin);
            let origin = here.origin.clone();
            layered.fail(side.uri_file, origin, Problem::Conflict(text));
            return None;
        }
        (Some(uri), None) => return Some(uri.clone()),
        (None, Some(path)) => {
            let path = path.clone();
            (path.clone(), Origin::NamedFile { path, key: side.uri_file })
        }
        (None, None) => match credential(inputs, side) {
            Some(path) if is_hidden(&path) => {
                layered.fail(side.uri, Origin::Credential(path), Problem::CredentialHidden);
                return None;
            }
            Some(path) => (path.clone(), Origin::Credential(path)),
            None => {
                let problem = Problem::Conflict(no_uri(inputs, side, layered.file_found));
                layered.fail(side.uri, Origin::Default, problem);
                return None;
            }
        },
    };
    let uri = match fs::read_to_string(&path) {
        Ok(text) => Uri::parse(text.trim_end_matches(['\n', '\r'])),
        Err(error) => {
            layered.errors.push(unreadable(origin, &error));
            return None;
        }
    };
    match uri {
        Ok(uri) => {
            layered.settings.set(side.uri, Value::Uri(Some(uri.clone())), origin);
            Some(uri)
        }
        Err(error) => {
            layered.fail(side.uri, origin, error.into());
            None
        }
    }
}

/// The file of a credential. An empty line counts as none: it is the unit's stand-in where nothing is configured.
fn credential(inputs: &Inputs, side: &Side) -> Option<PathBuf> {
    let path = inputs.credentials_directory.as_ref()?.join(side.credential);
    // What is there and cannot be read is an error when it is read again.
    let empty = fs::read_to_string(&path).is_ok_and(|text| text.trim().is_empty());
    ((path.exists() && !empty) || is_hidden(&path)).then_some(path)
}

/// Whether it cannot even be said that the file is there.
fn is_hidden(path: &Path) -> bool {
    fs::metadata(path).is_err_and(|error| error.kind() == ErrorKind::PermissionDenied)
}

fn no_uri(inputs: &Inputs, side: &Side, file_found: bool) -> String {
    let file = inputs.file.display();
    let missing = if file_found { "" } else { " (which does not exist)" };
    let variable =
        format!("{}{}", layers::ENVIRONMENT_PREFIX, side.uri.to_uppercase().replace('.', "__"));
    format!(
        "there is no connection string for the {}; set {} or {} in {file}{missing}, or {variable} in the environment, \
         or pass the systemd credential {}",
        side.name, side.uri, side.uri_file, side.credential
    )
}

/// Refuses a source and a target that name a common host.
pub(super) fn check_two_deployments(source: &Uri, target: &Uri, layered: &mut Layered) {
    if let Some(host) = source.shared_host(target) {
        let origin = layered.settings.get(TARGET.uri).origin.clone();
        let text = format!(
            "source and target are the same: both name the host {host}; name two deployments"
        );
        layered.fail(TARGET.uri, origin, Problem::Conflict(text));
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::{Config, layers::Inputs};
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use tempfile::TempDir;

    /// A directory with a configuration file, and inputs that read it.
    pub(in crate::config) struct Fixture {
        directory: TempDir,
        pub(in crate::config) inputs: Inputs,
    }

    pub(in crate::config) const URIS: &str =
        "[source]\nuri = \"mongodb://a\"\n[target]\nuri = \"mongodb://b\"\n";

    impl Fixture {
        pub(in crate::config) fn new(file: &str) -> Self {
            let directory = tempfile::tempdir().unwrap();
            let inputs = Inputs {
                file: directory.path().join("c.toml"),
                file_required: true,
                env: Vec::new(),
                overrides: Vec::new(),
                credentials_directory: Some(directory.path().join("credentials")),
            };
            let fixture = Self { directory, inputs };
            fixture.write("c.toml", file);
            fs::create_dir(fixture.directory.path().join("credentials")).unwrap();
            fixture
        }

        pub(in crate::config) fn write(&self, name: &str, text: &str) -> String {
            let path = self.directory.path().join(name);
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
            path.display().to_string()
        }

        pub(in crate::config) fn set(mut self, key: &str, value: &str) -> Self {
            self.inputs.overrides.push((key.to_owned(), value.to_owned()));
            self
        }

        pub(in crate::config) fn env(mut self, name: &str, value: &str) -> Self {
            self.inputs.env.push((name.to_owned(), value.to_owned()));
            self
        }

        pub(in crate::config) fn load(&self) -> Config {
            Config::load(&self.inputs).unwrap().config
        }

        pub(in crate::config) fn errors(&self) -> String {
            Config::load(&self.inputs).unwrap_err().to_string()
        }
    }

    #[test]
    fn takes_a_uri_from_wherever_it_is_given() {
        let fixture = Fixture::new("");
        let file = fixture.write("source", "mongodb://from-file\r\n");
        fixture.write("credentials/source-uri", "mongodb://other");
        fixture.write("credentials/target-uri", "mongodb://u:p@from-credential\n");
        let fixture = fixture.set("source.uri_file", &file);
        let config = fixture.load();
        assert_eq!(config.source.uri.expose(), "mongodb://from-file");
        assert_eq!(config.target.uri.expose(), "mongodb://u:p@from-credential");
        let effective = config.effective();
        let line = |key| effective.iter().find(|setting| setting.key == key).unwrap();
        assert_eq!(line("source.uri").origin, format!("{file} (source.uri_file)"));
        assert_eq!(line("target.uri").value, "mongodb://u:***@from-credential");
        assert!(line("target.uri").origin.ends_with("credentials/target-uri"));
        let config = fixture.env("SNAPSYNC__TARGET__URI", "mongodb://from-environment").load();
        assert_eq!(config.target.uri.expose(), "mongodb://from-environment");
    }

    /// The unit gives empty credentials where an administrator has made no files for them.
    #[test]
    fn an_empty_credential_is_none() {
        let fixture = Fixture::new("[source]\nuri = \"mongodb://a\"\n");
        fixture.write("credentials/source-uri", "\n");
        fixture.write("credentials/target-uri", "\n");
        assert!(fixture.errors().contains("there is no connection string for the target"));
        fixture.write("credentials/target-uri", "mongodb://b");
        assert_eq!(fixture.load().target.uri.expose(), "mongodb://b");
    }

    #[test]
    fn refuses_two_ways_at_once() {
        let fixture = Fixture::new(URIS).set("target.uri_file", "/nowhere");
        let file = fixture.inputs.file.display().to_string();
        assert_eq!(
            fixture.errors(),
            format!(
                "flag --set target.uri_file: target.uri_file: target.uri is given as well ({file}, line 4); keep one"
            )
        );
    }

    #[test]
    fn names_every_way_to_give_a_missing_uri() {
        let mut fixture = Fixture::new("");
        fixture.inputs.file = "/nowhere/c.toml".into();
        fixture.inputs.file_required = false;
        let errors = fixture.errors();
        assert_eq!(
            errors.lines().next().unwrap(),
            "source.uri: there is no connection string for the source; set source.uri or source.uri_file in \
             /nowhere/c.toml (which does not exist), or SNAPSYNC__SOURCE__URI in the environment, or pass the systemd \
             credential source-uri"
        );
        assert_eq!(errors.lines().count(), 2);
    }

    #[test]
    fn a_bad_uri_is_one_error_without_its_text() {
        let fixture = Fixture::new(URIS);
        let file = fixture.write("x", "mongodb://u:hunter/2@h");
        let fixture = fixture.set("source.uri", "").set("source.uri_file", &file);
        let errors = fixture.errors();
        assert_eq!(errors.lines().count(), 1, "{errors}");
        assert!(errors.contains("percent-encode") && !errors.contains("hunter"), "{errors}");
    }

    #[test]
    fn refuses_source_and_target_that_share_a_host() {
        let fixture = Fixture::new(URIS)
            .env("SNAPSYNC__SOURCE__URI", "mongodb://x,B:27017")
            .env("SNAPSYNC__TARGET__URI", "mongodb://u:hunter2@b,y");
        let errors = fixture.errors();
        assert!(errors.contains("source and target are the same"), "{errors}");
        assert!(errors.contains("b:27017") && !errors.contains("hunter2"), "{errors}");
    }
}
