//! Who may ask what. Pure: headers in, verdict out.
//!
//! - The unix socket: whoever may open it may do everything.
//! - TCP: with a token, every request but `/health/*` and the empty page `/` wants it. Without one, reading is free and
//!   nothing can be changed.
//!   What changes something must also not look like a page in somebody's browser: JSON, a known `Host`, no foreign
//!   `Origin`. That holds even if a token leaks into a browser.

use std::net::{IpAddr, SocketAddr};

use axum::http::header::{AUTHORIZATION, CONTENT_TYPE, HOST, ORIGIN};
use axum::http::{HeaderMap, Method, StatusCode};
use secrecy::{ExposeSecret, SecretString};
use subtle::ConstantTimeEq;

/// Where a request came in.
#[derive(Debug, Clone)]
pub(super) enum Door {
    /// The unix socket.
    Socket,
    /// `control.listen`.
    Tcp {
        /// The text of `control.listen`, such as `127.0.0.1:2727` or `db.example.com:2727`.
        listen: String,
        /// The address that is really listened on.
        address: SocketAddr,
        /// The token, where one is configured.
        token: Option<SecretString>,
    },
}

/// What is to be answered to a request that may not pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Denied {
    pub(super) status: StatusCode,
    pub(super) message: &'static str,
}

const fn denied(status: StatusCode, message: &'static str) -> Result<(), Denied> {
    Err(Denied { status, message })
}

impl Door {
    /// Whether a request may pass. `has_body` is whether the request carries one.
    pub(super) fn check(
        &self,
        method: &Method,
        path: &str,
        headers: &HeaderMap,
        has_body: bool,
    ) -> Result<(), Denied> {
        let Self::Tcp { listen, address, token } = self else { return Ok(()) };
        // The page itself says nothing, and a browser cannot send a token with its first request: the page asks for it.
        if path.starts_with("/health/") || (path == "/" && method.is_safe()) {
            return Ok(());
        }
        match token {
            Some(token) if !has_token(headers, token) => {
                return denied(
                    StatusCode::UNAUTHORIZED,
                    "this wants the header Authorization: Bearer with the token of control.token_file",
                );
            }
            None if !method.is_safe() => {
                return denied(
                    StatusCode::FORBIDDEN,
                    "changes over TCP want control.token_file; use the unix socket, or configure a token",
                );
            }
            _ => {}
        }
        if method.is_safe() {
            return Ok(());
        }
        check_not_a_browser(headers, has_body, &KnownHosts { listen, address: *address })
    }
}

fn check_not_a_browser(
    headers: &HeaderMap,
    has_body: bool,
    known: &KnownHosts<'_>,
) -> Result<(), Denied> {
    let Some(host) = text(headers, HOST.as_str()).filter(|host| known.contains(host)) else {
        return denied(
            StatusCode::FORBIDDEN,
            "the Host header is not an address of control.listen",
        );
    };
    if headers.contains_key(ORIGIN)
        && text(headers, ORIGIN.as_str()) != Some(&format!("http://{host}"))
    {
        return denied(StatusCode::FORBIDDEN, "the Origin header names another site");
    }
    if text(headers, "sec-fetch-site").is_some_and(|site| site != "same-origin" && site != "none") {
        return denied(StatusCode::FORBIDDEN, "a page of another site sent this request");
    }
    if has_body && !is_json(headers) {
        return denied(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "the body has to be JSON, with Content-Type: application/json",
        );
    }
    Ok(())
}

/// The names under which the listening address is known to be ours. A DNS name that an attacker points at this machine
/// is not among them.
struct KnownHosts<'a> {
    listen: &'a str,
    address: SocketAddr,
}

impl KnownHosts<'_> {
    fn contains(&self, host: &str) -> bool {
        if host.eq_ignore_ascii_case(self.listen) {
            return true;
        }
        let Some((name, port)) = host.rsplit_once(':') else { return false };
        if port.parse() != Ok(self.address.port()) {
            return false;
        }
        let listen_name = self.listen.rsplit_once(':').map_or(self.listen, |(name, _)| name);
        name.eq_ignore_ascii_case("localhost")
            || name.eq_ignore_ascii_case(listen_name)
            || self.is_our_address(name)
    }

    /// An address rather than a name cannot be pointed elsewhere, so where everything is listened on, any will do.
    fn is_our_address(&self, name: &str) -> bool {
        let bare = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
        bare.parse::<IpAddr>().is_ok_and(|ip| {
            self.address.ip().is_unspecified() || ip.is_loopback() || ip == self.address.ip()
        })
    }
}

fn has_token(headers: &HeaderMap, token: &SecretString) -> bool {
    let Some((scheme, given)) =
        text(headers, AUTHORIZATION.as_str()).and_then(|value| value.split_once(' '))
    else {
        return false;
    };
    let same = given.trim().as_bytes().ct_eq(token.expose_secret().as_bytes());
    scheme.eq_ignore_ascii_case("bearer") && bool::from(same)
}

fn is_json(headers: &HeaderMap) -> bool {
    text(headers, CONTENT_TYPE.as_str()).is_some_and(|value| {
        let essence = value.split(';').next().unwrap_or_default().trim();
        essence.eq_ignore_ascii_case("application/json")
    })
}

/// The value of a header that is there exactly once and is plain text.
fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?;
    values.next().is_none().then(|| value.to_str().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(listen: &str, address: &str, token: Option<&str>) -> Door {
        Door::Tcp {
            listen: listen.into(),
            address: address.parse().unwrap(),
            token: token.map(SecretString::from),
        }
    }

    fn loopback() -> Door {
        tcp("127.0.0.1:2727", "127.0.0.1:2727", Some("s3cret"))
    }

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    /// The status a POST with a body gets, 200 when it may pass.
    fn post(door: &Door, pairs: &[(&'static str, &str)]) -> u16 {
        let verdict = door.check(&Method::POST, "/pause", &headers(pairs), true);
        verdict.map_or_else(|denied| denied.status.as_u16(), |()| 200)
    }

    fn get(door: &Door, path: &str, pairs: &[(&'static str, &str)]) -> u16 {
        let verdict = door.check(&Method::GET, path, &headers(pairs), false);
        verdict.map_or_else(|denied| denied.status.as_u16(), |()| 200)
    }

    const TOKEN: (&str, &str) = ("authorization", "Bearer s3cret");
    const JSON: (&str, &str) = ("content-type", "application/json; charset=utf-8");
    const OURS: (&str, &str) = ("host", "127.0.0.1:2727");

    #[test]
    fn the_socket_asks_nothing() {
        assert_eq!(post(&Door::Socket, &[]), 200);
        assert_eq!(get(&Door::Socket, "/status", &[]), 200);
    }

    #[test]
    fn with_a_token_only_health_and_the_empty_page_are_free() {
        let door = loopback();
        assert_eq!(get(&door, "/health/ready", &[]), 200);
        assert_eq!(get(&door, "/", &[]), 200);
        for path in ["/status", "/metrics", "/health", "/healthy", "//", "/nowhere"] {
            assert_eq!(get(&door, path, &[]), 401, "{path}");
        }
        assert_eq!(get(&door, "/status", &[TOKEN]), 200);
        assert_eq!(get(&door, "/status", &[("authorization", "bearer s3cret")]), 200);
        for wrong in
            ["Bearer s3cre", "Bearer s3cret2", "Bearer ", "Bearer", "s3cret", "Basic s3cret"]
        {
            assert_eq!(get(&door, "/status", &[("authorization", wrong)]), 401, "{wrong}");
        }
        assert_eq!(get(&door, "/status", &[TOKEN, TOKEN]), 401);
    }

    #[test]
    fn without_a_token_one_may_look_but_not_touch() {
        let door = tcp("127.0.0.1:2727", "127.0.0.1:2727", None);
        assert_eq!(get(&door, "/status", &[]), 200);
        assert_eq!(post(&door, &[OURS, JSON]), 403);
    }

    #[test]
    fn a_change_wants_a_token_json_and_a_known_host() {
        let door = loopback();
        assert_eq!(post(&door, &[TOKEN, JSON, OURS]), 200);
        assert_eq!(post(&door, &[JSON, OURS]), 401);
        assert_eq!(post(&door, &[TOKEN, OURS]), 415);
        assert_eq!(post(&door, &[TOKEN, OURS, ("content-type", "text/plain")]), 415);
        assert_eq!(post(&door, &[TOKEN, JSON]), 403);
        let empty = door.check(&Method::POST, "/pause", &headers(&[TOKEN, OURS]), false);
        assert_eq!(empty, Ok(()));
    }

    #[test]
    fn a_host_is_known_by_address_or_by_the_configured_name() {
        let host = |door: &Door, host: &str| post(door, &[TOKEN, JSON, ("host", host)]);
        let door = loopback();
        for known in ["127.0.0.1:2727", "localhost:2727", "LOCALHOST:2727", "[::1]:2727"] {
            assert_eq!(host(&door, known), 200, "{known}");
        }
        for foreign in
            ["evil.example:2727", "localhost", "localhost:80", "10.0.0.1:2727", "", ":2727"]
        {
            assert_eq!(host(&door, foreign), 403, "{foreign}");
        }
        let named = tcp("db.example.com:2727", "10.0.0.1:2727", Some("s3cret"));
        for known in ["db.example.com:2727", "DB.example.com:2727", "10.0.0.1:2727"] {
            assert_eq!(host(&named, known), 200, "{known}");
        }
        assert_eq!(host(&named, "10.0.0.2:2727"), 403);
        let everywhere = tcp("[::]:2727", "[::]:2727", Some("s3cret"));
        assert_eq!(host(&everywhere, "10.0.0.2:2727"), 200);
        assert_eq!(host(&everywhere, "evil.example:2727"), 403);
    }

    #[test]
    fn a_page_of_another_site_may_not_change_anything() {
        let door = loopback();
        let with = |name, value| post(&door, &[TOKEN, JSON, OURS, (name, value)]);
        assert_eq!(with("origin", "http://127.0.0.1:2727"), 200);
        for foreign in
            ["http://evil.example", "null", "http://127.0.0.1:80", "https://127.0.0.1:2727"]
        {
            assert_eq!(with("origin", foreign), 403, "{foreign}");
        }
        assert_eq!(with("sec-fetch-site", "same-origin"), 200);
        assert_eq!(with("sec-fetch-site", "cross-site"), 403);
        assert_eq!(with("sec-fetch-site", "same-site"), 403);
    }
}
