//! What is answered on which path.

use std::time::Duration;

use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::header::{
    CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, TRANSFER_ENCODING, WWW_AUTHENTICATE,
};
use axum::http::{HeaderValue, Method, StatusCode, Uri};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Value, json};

use super::control::{CUTOVER_TIMEOUT, Control, CutoverOptions, Wish};
use super::guard::Door;
use crate::config::parse_duration;
use crate::status::{Status, StatusBoard, VerifyDepth};

/// Bytes of a request's body. The longest wish is a list of namespaces.
const BODY_BYTES_MAX: usize = 1024 * 1024;

/// How long a request may take, the sync room's answer included.
const REQUEST_TIME_MAX: Duration = Duration::from_secs(30);

#[derive(Debug, Clone)]
struct Api {
    board: StatusBoard,
    control: Control,
}

/// All routes, guarded as the door wants it.
pub(super) fn router(board: StatusBoard, control: Control, door: Door) -> Router {
    Router::new()
        .route("/", get(super::page::page))
        .route("/status", get(status))
        .route("/metrics", get(metrics))
        .route("/health/live", get(live))
        .route("/health/ready", get(ready))
        .route("/pause", post(pause))
        .route("/resume", post(resume))
        .route("/resync", post(resync))
        .route("/discard", post(discard))
        .route("/cutover", post(cutover))
        .fallback(no_such_path)
        .method_not_allowed_fallback(wrong_method)
        .with_state(Api { board, control })
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .layer(from_fn_with_state(door, guarded))
}

/// Runs around every request: the guard, the time limit, and what all answers have in common.
async fn guarded(State(door): State<Door>, request: Request, next: Next) -> Response {
    let headers = request.headers();
    let has_body = headers.contains_key(TRANSFER_ENCODING)
        || headers.get(CONTENT_LENGTH).is_some_and(|length| length != "0");
    let verdict = door.check(request.method(), request.uri().path(), headers, has_body);
    let mut response = match verdict {
        Err(denied) => error(denied.status, denied.message),
        Ok(()) => tokio::time::timeout(REQUEST_TIME_MAX, next.run(request))
            .await
            .unwrap_or_else(|_| error(StatusCode::SERVICE_UNAVAILABLE, "no answer in time")),
    };
    if response.status() == StatusCode::UNAUTHORIZED {
        response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

fn error(status: StatusCode, message: impl AsRef<str>) -> Response {
    (status, Json(json!({ "error": message.as_ref() }))).into_response()
}

async fn status(State(api): State<Api>) -> Json<Status> {
    Json(api.board.read())
}

async fn metrics(State(api): State<Api>) -> Response {
    let text = super::metrics::render(&api.board.read(), api.board.reserve());
    ([(CONTENT_TYPE, super::metrics::CONTENT_TYPE)], text).into_response()
}

async fn live() -> Json<Value> {
    Json(json!({ "live": true }))
}

async fn ready(State(api): State<Api>) -> Response {
    match api.board.ready() {
        Ok(()) => Json(json!({ "ready": true })).into_response(),
        Err(reason) => error(StatusCode::SERVICE_UNAVAILABLE, reason),
    }
}

async fn pause(State(api): State<Api>, body: Result<Bytes, BytesRejection>) -> Response {
    without_options(&api, body, Wish::Pause).await
}

async fn resume(State(api): State<Api>, body: Result<Bytes, BytesRejection>) -> Response {
    without_options(&api, body, Wish::Resume).await
}

async fn discard(State(api): State<Api>, body: Result<Bytes, BytesRejection>) -> Response {
    without_options(&api, body, Wish::Discard).await
}

async fn without_options(api: &Api, body: Result<Bytes, BytesRejection>, wish: Wish) -> Response {
    match check_no_options(body) {
        Ok(()) => answer(api, wish, StatusCode::OK).await,
        Err(response) => *response,
    }
}

/// The body of `POST /resync`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ResyncOptions {
    /// Collections or databases by their names on the source; all if there are none.
    #[serde(default)]
    namespaces: Vec<String>,
}

async fn resync(State(api): State<Api>, body: Result<Bytes, BytesRejection>) -> Response {
    let bytes = match body {
        Ok(bytes) => bytes,
        Err(rejection) => return error(rejection.status(), "the body could not be read"),
    };
    let text = if bytes.is_empty() { b"{}".as_slice() } else { &bytes };
    match serde_json::from_slice::<ResyncOptions>(text) {
        Ok(ResyncOptions { namespaces }) => {
            answer(&api, Wish::Resync { namespaces }, StatusCode::ACCEPTED).await
        }
        Err(_) => error(
            StatusCode::BAD_REQUEST,
            r#"the body has to be {"namespaces": ["database.collection", …]}, or {} for all"#,
        ),
    }
}

/// The body of `POST /cutover`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct CutoverBody {
    block_source_writes: bool,
    verify: VerifyDepth,
    /// Such as `10m`.
    timeout: Option<String>,
    dry_run: bool,
    source_lost: bool,
    /// Gives up the one under way; nothing else may be asked for with it.
    abort: bool,
    by: Option<String>,
}

impl CutoverBody {
    fn wish(self) -> Option<Wish> {
        if self.abort {
            let alone = !self.block_source_writes && !self.dry_run && !self.source_lost;
            return (alone && self.timeout.is_none()).then_some(Wish::AbortCutover);
        }
        // Nothing can be rehearsed, and nobody asked to stop writing, without it.
        if self.source_lost && (self.dry_run || self.block_source_writes) {
            return None;
        }
        let timeout = match self.timeout.as_deref() {
            Some(text) => parse_duration(text).filter(|timeout| !timeout.is_zero())?,
            None => CUTOVER_TIMEOUT,
        };
        Some(Wish::Cutover(CutoverOptions {
            block_source_writes: self.block_source_writes,
            verify: self.verify,
            timeout,
            dry_run: self.dry_run,
            source_lost: self.source_lost,
            by: self.by,
        }))
    }
}

async fn cutover(State(api): State<Api>, body: Result<Bytes, BytesRejection>) -> Response {
    let bytes = match body {
        Ok(bytes) => bytes,
        Err(rejection) => return error(rejection.status(), "the body could not be read"),
    };
    let text = if bytes.is_empty() { b"{}".as_slice() } else { &bytes };
    let wish = serde_json::from_slice::<CutoverBody>(text).ok().and_then(CutoverBody::wish);
    let Some(wish) = wish else {
        let text = concat!(
            r#"the body has to be {"block_source_writes": false, "verify": "full" | "counts" | "none", "#,
            r#""timeout": "10m", "dry_run": false, "source_lost": false}, or {"abort": true}"#
        );
        return error(StatusCode::BAD_REQUEST, text);
    };
    if let Err(refusal) = api.control.ask(wish).await {
        return error(refusal.status, refusal.message);
    }
    let status = api.board.read();
    let begun = json!({ "state": status.state, "cutover": status.cutover });
    (StatusCode::ACCEPTED, Json(begun)).into_response()
}

/// A wish without options comes with no body, or with an object that holds nothing.
fn check_no_options(body: Result<Bytes, BytesRejection>) -> Result<(), Box<Response>> {
    let bytes = body
        .map_err(|rejection| Box::new(error(rejection.status(), "the body could not be read")))?;
    if bytes.is_empty() {
        return Ok(());
    }
    match serde_json::from_slice::<Value>(&bytes) {
        Ok(Value::Object(options)) if options.is_empty() => Ok(()),
        _ => Err(Box::new(error(StatusCode::BAD_REQUEST, "the body has to be empty, or {}"))),
    }
}

/// What became of a wish: what of the status it may have changed.
async fn answer(api: &Api, wish: Wish, granted: StatusCode) -> Response {
    if let Err(refusal) = api.control.ask(wish).await {
        return error(refusal.status, refusal.message);
    }
    let status = api.board.read();
    let changed = json!({
        "state": status.state,
        "copying": status.copying,
        "replaced": status.replaced,
    });
    (granted, Json(changed)).into_response()
}

async fn no_such_path(uri: Uri) -> Response {
    error(StatusCode::NOT_FOUND, format!("there is nothing at {}", uri.path()))
}

async fn wrong_method(method: Method, uri: Uri) -> Response {
    error(StatusCode::METHOD_NOT_ALLOWED, format!("{} does not take {method}", uri.path()))
}
