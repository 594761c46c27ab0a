//! Values that must never be printed: passwords, tokens, and URIs that hold them.
//!
//! Everything here prints redacted, both with `{}` and with `{:?}`; the real text leaves only through a method named
//! `expose`. What is not fully understood is hidden whole: hiding a host name is a nuisance, showing a password is not.

use std::fmt;

use secrecy::{ExposeSecret, SecretString};

/// What stands in the place of a secret.
pub(super) const HIDDEN: &str = "***";

/// The port that a MongoDB host without one means.
const DEFAULT_PORT: u16 = 27017;

/// URI options whose values are harmless and useful to see, in lower case. From the first other one on, all are hidden.
const SHOWN_OPTIONS: [&str; 28] = [
    "appname",
    "authmechanism",
    "authsource",
    "compressors",
    "connecttimeoutms",
    "directconnection",
    "heartbeatfrequencyms",
    "journal",
    "loadbalanced",
    "localthresholdms",
    "maxidletimems",
    "maxconnecting",
    "maxpoolsize",
    "maxstalenessseconds",
    "minpoolsize",
    "readconcernlevel",
    "readpreference",
    "replicaset",
    "retryreads",
    "retrywrites",
    "serverselectiontimeoutms",
    "sockettimeoutms",
    "srvservicename",
    "ssl",
    "tls",
    "tlsallowinvalidcertificates",
    "w",
    "wtimeoutms",
];

/// URI options that hold a secret, in lower case: with one of these a URI may not be an argument.
const SECRET_OPTIONS: [&str; 3] =
    ["authmechanismproperties", "tlscertificatekeyfilepassword", "proxypassword"];

/// A text that is never printed, such as a token.
#[derive(Clone)]
pub struct Secret(SecretString);

impl Secret {
    /// Hides a text.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self(SecretString::from(text.into()))
    }

    /// The real text, for the one place that needs it.
    #[must_use]
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }
}

impl PartialEq for Secret {
    /// Compares two configured values with each other. Not for checking what a client sent: it takes longer the more
    /// of it is right.
    fn eq(&self, other: &Self) -> bool {
        self.expose() == other.expose()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(HIDDEN)
    }
}

/// A MongoDB connection string that looks right. Prints with its password and unknown options hidden.
#[derive(Clone, PartialEq)]
pub struct Uri {
    text: Secret,
    hosts: Vec<String>,
}

/// Why a text is not a usable connection string. Never quotes any of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UriError {
    /// Neither of the two schemes.
    #[error("is not a MongoDB URI: it must begin with mongodb:// or mongodb+srv://")]
    Scheme,
    /// A character that separates parts stands where it cannot.
    #[error(
        "cannot be split into its parts: percent-encode : / ? # [ ] @ in the user name, the password and the options \
         (for example @ as %40)"
    )]
    Unescaped,
    /// A host name that is empty, or that holds what no host name does.
    #[error("has a host name that is empty or has characters that host names do not have")]
    Host,
    /// A port that is not 1 to 65535.
    #[error("has a port that is not a number from 1 to 65535 (or a password without its @host)")]
    Port,
    /// More than one host, or a port, with `mongodb+srv`.
    #[error("begins with mongodb+srv:// and so takes exactly one host name, without a port")]
    Srv,
}

impl Uri {
    /// Checks the form of a connection string; what its options mean is left to the driver.
    ///
    /// # Errors
    ///
    /// When the scheme, the hosts or the ports are wrong, or when a separator was not percent-encoded so that it
    /// cannot be said which part is the password.
    pub fn parse(text: &str) -> Result<Self, UriError> {
        let parts = Parts::split(text)?;
        Ok(Self { hosts: parts.normal_hosts()?, text: Secret::new(text) })
    }

    /// The real text, for the driver.
    #[must_use]
    pub fn expose(&self) -> &str {
        self.text.expose()
    }

    /// `host:port` of every host in lower case, or the one name after `mongodb+srv://`; sorted, without repetitions.
    #[must_use]
    pub fn hosts(&self) -> &[String] {
        &self.hosts
    }

    /// Whether it holds a password, or an option that is one: then it may not stand where `ps` shows it.
    #[must_use]
    pub fn has_password(&self) -> bool {
        Parts::split(self.expose()).is_ok_and(|parts| parts.has_password())
    }

    /// The first host that both name, if any: then both are the same deployment.
    #[must_use]
    pub fn shared_host<'a>(&'a self, other: &Uri) -> Option<&'a str> {
        self.hosts.iter().find(|host| other.hosts.contains(host)).map(String::as_str)
    }
}

impl fmt::Display for Uri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&redact(self.expose()))
    }
}

impl fmt::Debug for Uri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A connection string without its password and without the values of options that could be secret. A text that
/// cannot be split with certainty is hidden whole.
#[must_use]
pub fn redact(text: &str) -> String {
    match Parts::split(text).and_then(|parts| parts.normal_hosts().map(|_| parts)) {
        Ok(parts) => parts.redacted(),
        Err(_) => HIDDEN.to_owned(),
    }
}

/// A connection string cut at its separators.
struct Parts<'a> {
    scheme: &'a str,
    user: Option<&'a str>,
    password: Option<&'a str>,
    hosts: &'a str,
    path: &'a str,
    options: Option<&'a str>,
}

impl<'a> Parts<'a> {
    fn split(text: &'a str) -> Result<Self, UriError> {
        let rest = text.strip_prefix("mongodb://").or_else(|| text.strip_prefix("mongodb+srv://"));
        let rest = rest.ok_or(UriError::Scheme)?;
        let scheme = &text[..text.len() - rest.len()];
        let (authority, tail) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        // A bare @ behind the hosts may well be the end of a password that holds a slash.
        if tail.contains('@') {
            return Err(UriError::Unescaped);
        }
        let (user, password, hosts) = match authority.rsplit_once('@') {
            None => (None, None, authority),
            Some((login, hosts)) => match login.split_once(':') {
                None => (Some(login), None, hosts),
                Some((user, password)) => (Some(user), Some(password), hosts),
            },
        };
        let separators = |part: Option<&str>| part.is_some_and(|part| part.contains(SEPARATORS));
        if separators(user) || separators(password) {
            return Err(UriError::Unescaped);
        }
        let (path, options) = match tail.split_once('?') {
            None => (tail, None),
            Some((path, options)) => (path, Some(options)),
        };
        Ok(Self { scheme, user, password, hosts, path, options })
    }

    fn normal_hosts(&self) -> Result<Vec<String>, UriError> {
        let srv = self.scheme == "mongodb+srv://";
        let mut hosts = Vec::new();
        for host in self.hosts.split(',') {
            let (name, port) = split_port(host)?;
            let known = |c: char| c.is_alphanumeric() || "-_.%:[]".contains(c);
            if name.is_empty() || !name.chars().all(known) {
                return Err(UriError::Host);
            }
            if srv && (port.is_some() || !hosts.is_empty()) {
                return Err(UriError::Srv);
            }
            let socket = name.to_ascii_lowercase().contains("%2f");
            let name = if socket { name.to_owned() } else { name.to_ascii_lowercase() };
            let name = name.trim_end_matches('.');
            hosts.push(match (srv || socket, port) {
                (true, _) => name.to_owned(),
                (false, port) => format!("{name}:{}", port.unwrap_or(DEFAULT_PORT)),
            });
        }
        hosts.sort();
        hosts.dedup();
        Ok(hosts)
    }

    fn options(&self) -> impl Iterator<Item = (&'a str, &'a str)> {
        let options = self.options.unwrap_or_default().split('&').filter(|text| !text.is_empty());
        options.map(|option| option.split_once('=').unwrap_or((option, "")))
    }

    fn has_password(&self) -> bool {
        let secret = |name: &str| SECRET_OPTIONS.contains(&name.to_ascii_lowercase().as_str());
        self.password.is_some() || self.options().any(|(name, _)| secret(name))
    }

    fn redacted(&self) -> String {
        let user = self.user.map_or(String::new(), |user| match self.password {
            Some(_) => format!("{user}:{HIDDEN}@"),
            None => format!("{user}@"),
        });
        let mut options = Vec::new();
        for (name, value) in self.options() {
            if !is_harmless(name, value) {
                // An ampersand in a password that was not percent-encoded makes its rest look like more options.
                options.push(HIDDEN.to_owned());
                break;
            }
            options.push(format!("{name}={value}"));
        }
        let mark = if self.options.is_some() { "?" } else { "" };
        format!("{}{user}{}{}{mark}{}", self.scheme, self.hosts, self.path, options.join("&"))
    }
}

/// Separators that a user name or password may hold only percent-encoded; `/` and `?` have ended the part before.
const SEPARATORS: [char; 5] = [':', '@', '#', '[', ']'];

/// Splits `host:port`, minding `[::1]:27017`.
fn split_port(host: &str) -> Result<(&str, Option<u16>), UriError> {
    let address_end = match host.strip_prefix('[') {
        Some(rest) => rest.find(']').ok_or(UriError::Host)? + 2,
        None => 0,
    };
    let Some(colon) = host[address_end..].find(':') else {
        return Ok((host, None));
    };
    let (name, port) = (&host[..address_end + colon], &host[address_end + colon + 1..]);
    let port = port.parse().ok().filter(|port| *port > 0).ok_or(UriError::Port)?;
    Ok((name, Some(port)))
}

/// Whether an option is known to hold no secret, and looks like it.
fn is_harmless(name: &str, value: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.,:$%/".contains(c);
    SHOWN_OPTIONS.contains(&name.to_ascii_lowercase().as_str()) && value.chars().all(plain)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn hides_passwords_and_shows_the_rest() {
        for (uri, shown) in [
            ("mongodb://h", "mongodb://h"),
            ("mongodb://u@h/?w=1", "mongodb://u@h/?w=1"),
            (
                "mongodb://me:p%40ss@a:1,b:2,[::1]:3/shop?replicaSet=rs0&authSource=$external",
                "mongodb://me:***@a:1,b:2,[::1]:3/shop?replicaSet=rs0&authSource=$external",
            ),
            ("mongodb+srv://:p@c.example.net", "mongodb+srv://:***@c.example.net"),
            (
                "mongodb://h/?w=1&authMechanismProperties=AWS_SESSION_TOKEN:abc&tls=true",
                "mongodb://h/?w=1&***",
            ),
            (
                "mongodb://h/?tls=true&TLSCertificateKeyFilePassword=q&w=1",
                "mongodb://h/?tls=true&***",
            ),
            ("mongodb://h/?proxyPassword=a&w=b", "mongodb://h/?***"),
            ("mongodb://h/?new=s&w=1", "mongodb://h/?***"),
            ("mongodb://u:p/q@h", "***"),
            ("mongodb://u:1/q@h", "***"),
            ("mongodb://u:p@q@h", "***"),
            ("mongodb://u:p", "***"),
            ("http://u:p@h", "***"),
            ("secret", "***"),
        ] {
            assert_eq!(redact(uri), shown);
        }
    }

    #[test]
    fn refuses_what_cannot_be_a_uri_and_never_quotes_it() {
        for (text, error) in [
            ("", UriError::Scheme),
            ("localhost:27017", UriError::Scheme),
            ("MONGODB://h", UriError::Scheme),
            ("mongodb://", UriError::Host),
            ("mongodb://a,,b", UriError::Host),
            ("mongodb://:1", UriError::Host),
            ("mongodb://[::1", UriError::Host),
            ("mongodb://a b", UriError::Host),
            ("mongodb://u:p@hunter2&w=1", UriError::Host),
            ("mongodb://a:0", UriError::Port),
            ("mongodb://a:65536", UriError::Port),
            ("mongodb://u:hunter2", UriError::Port),
            ("mongodb://u:hunter@2@h", UriError::Unescaped),
            ("mongodb://u:hunter/2@h", UriError::Unescaped),
            ("mongodb+srv://a,b", UriError::Srv),
            ("mongodb+srv://a:1", UriError::Srv),
        ] {
            assert_eq!(Uri::parse(text).unwrap_err(), error, "{text}");
            assert!(!error.to_string().contains("hunter"));
        }
    }

    #[test]
    fn sees_a_shared_host_behind_spelling() {
        let uri = |text| Uri::parse(text).unwrap();
        let one = uri("mongodb://A.example,b.example.:27018/?replicaSet=x");
        assert_eq!(one.hosts(), ["a.example:27017", "b.example:27018"]);
        assert_eq!(one.shared_host(&uri("mongodb://u:p@B.example:27018")), Some("b.example:27018"));
        assert_eq!(one.shared_host(&uri("mongodb://b.example")), None);
        // A name to look up is not a host.
        assert_eq!(uri("mongodb+srv://x").shared_host(&uri("mongodb://x")), None);
        assert_eq!(uri("mongodb://%2Ftmp%2FA.sock").hosts(), ["%2Ftmp%2FA.sock"]);
        assert_eq!(uri("mongodb://[::1]").hosts(), ["[::1]:27017"]);
    }

    #[test]
    fn knows_which_uris_hold_a_password() {
        let has = |text| Uri::parse(text).unwrap().has_password();
        assert!(has("mongodb://u:p@h") && has("mongodb://u:@h"));
        assert!(has("mongodb://h/?tlsCertificateKeyFilePassword=p"));
        assert!(has("mongodb://h/?authmechanismproperties=AWS_SESSION_TOKEN:p"));
        assert!(!has("mongodb://u@h/?replicaSet=rs0"));
    }

    /// Capital letters stand nowhere but in the password, so one of them in the output is a leak.
    fn leaks(text: &str) -> bool {
        text.contains(['P', 'Q', 'W'])
    }

    fn percent_encoded(text: &str) -> String {
        text.bytes()
            .map(|byte| match byte {
                b'A'..=b'Z' => char::from(byte).to_string(),
                _ => format!("%{byte:02x}"),
            })
            .collect()
    }

    /// What can stand before and after a password, as a login or as an option. A login always has its host: without
    /// one, the end of a password that holds an @ cannot be told from a host name.
    fn around_a_password() -> impl Strategy<Value = (&'static str, &'static str)> {
        let login = (
            prop::sample::select(vec![
                "mongodb://u:",
                "mongodb+srv://u:",
                "mongodb://:",
                "mongodb://u@v:",
                "u:",
            ]),
            prop::sample::select(vec!["@h", "@h:1,i:2", "@h/db?w=1", "@h/?appname=a@b"]),
        );
        let option = (
            prop::sample::select(vec![
                "mongodb://h/?proxypassword=",
                "mongodb://h,i:1/?w=1&tlscertificatekeyfilepassword=",
                "mongodb://u:p@h/?authmechanismproperties=AWS_SESSION_TOKEN:",
            ]),
            prop::sample::select(vec!["", "&w=1", "@", "/?w=1"]),
        );
        prop_oneof![login, option]
    }

    proptest! {
        #[test]
        fn no_password_ever_shows(
            password in "[PQW][PQW@:/?#&=%;,.0-9 ]{0,12}",
            encode: bool,
            (before, after) in around_a_password(),
        ) {
            let password = if encode { percent_encoded(&password) } else { password };
            let text = format!("{before}{password}{after}");
            prop_assert!(!leaks(&redact(&text)), "{}", redact(&text));
            match Uri::parse(&text) {
                Ok(uri) => {
                    let printed = format!("{uri} {uri:?}");
                    prop_assert!(!leaks(&printed));
                    prop_assert!(uri.has_password());
                }
                Err(error) => {
                    let printed = error.to_string();
                    prop_assert!(!leaks(&printed));
                }
            }
        }
    }
}
