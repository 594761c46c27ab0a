//! `GET /`: one page that shows the status live. It brings everything along and may load, and talk to, nothing but this
//! daemon: its own style and script are allowed by their hashes, and names of collections only ever become text.

use axum::http::header::{
    CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use axum::response::{IntoResponse, Response};

/// The page. It holds nothing about the migration: that comes from `/status`, which wants the token where there is one.
const PAGE: &str = include_str!("page.html");

/// What the browser may do with it. The hashes are of the page's one style and one script.
const POLICY: &str = "default-src 'none'; connect-src 'self'; img-src data:; \
    style-src 'sha256-F7JpPNn5nvy6zlJ62iGP1ZhpGKXoxXIppndslSolsqM='; \
    script-src 'sha256-A+EDxF9evjDcB/lWB+h6/SbqapYewipAcVxCMTwavjc='; \
    base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The page, with what browsers are to make of it.
pub(super) async fn page() -> Response {
    let headers = [
        (CONTENT_TYPE, "text/html; charset=utf-8"),
        (CONTENT_SECURITY_POLICY, POLICY),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (X_FRAME_OPTIONS, "DENY"),
        (REFERRER_POLICY, "no-referrer"),
    ];
    (headers, PAGE).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::Engine;
    use sha2::{Digest, Sha256};

    /// A changed page with an old hash would be shown without its style or would not run at all.
    #[test]
    fn the_policy_allows_exactly_this_page() {
        for (tag, rule) in [("style", "style-src"), ("script", "script-src")] {
            let (open, close) = (format!("<{tag}>"), format!("</{tag}>"));
            assert_eq!(PAGE.matches(&open).count(), 1);
            let inside = PAGE.split(&open).nth(1).unwrap().split(&close).next().unwrap();
            let digest = base64::prelude::BASE64_STANDARD.encode(Sha256::digest(inside));
            let allowed = format!("{rule} 'sha256-{digest}';");
            assert!(POLICY.contains(&allowed), "put this into POLICY: {allowed}");
        }
    }

    #[test]
    fn the_page_is_all_there_is() {
        for foreign in ["http:", "https:", "//", "innerHTML", " style=", " onclick=", "eval("] {
            let found = PAGE
                .lines()
                .find(|line| line.contains(foreign) && !line.trim_start().starts_with("// "));
            assert_eq!(found, None, "{foreign}");
        }
    }
}
