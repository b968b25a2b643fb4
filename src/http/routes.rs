//! Every route, once: what serves it and what OpenAPI says of it come from the same line.

use axum::Router;
use axum::body::Body;
use axum::extract::{Extension, State};
use axum::response::Response;
use axum::routing::{MethodFilter, get, on};
use bytes::Bytes;
use http::StatusCode;
use utoipa::openapi::HttpMethod;

use super::backup;
use super::openapi::Description;
use super::perform::{Front, Guest, astray, open, perform};
use super::problem::Problem;
use super::reply::{IntoReply, JSON, json, text};
use super::shape::FromWire;
use crate::service::{
    Appliance, CancelRetirement, Compromise, ConfirmClock, CreateBackup, CreateKey, Deactivate,
    Decrypt, DeleteSecret, Destroy, Doctor, Encrypt, ExplainPolicy, ForgetRecovery, ImportKey,
    Init, Jwks, ListKeys, ListSecrets, Lock, PutSecret, ReadAudit, ReadMetrics, ReadPublicKey,
    Restore, Resume, RetireMaster, RevealSecret, Rotate, RotateMaster, SetRecovery, ShowKey,
    ShowMaster, ShowPublic, ShowRecovery, ShowSecret, Status, Suspend, TransferKey, TransferSecret,
    Unlock, UpdateKey,
};

/// Routes and their description, growing together.
struct Routes {
    router: Router<Front>,
    description: Description,
}

impl Routes {
    fn add<R, const CREATED: bool>(
        mut self,
        method: (MethodFilter, HttpMethod),
        path: &'static str,
        summary: &'static str,
    ) -> Self
    where
        R: FromWire,
        R::Reply: IntoReply,
    {
        self.router = self.router.route(path, on(method.0, perform::<R, CREATED>));
        self.description.add::<R>(method.1, path, summary, CREATED);
        self
    }
}

impl Routes {
    /// The route whose answer is a stream.
    fn add_backup(mut self, path: &'static str, summary: &'static str) -> Self {
        self.router = self.router.route(path, on(POST.0, backup::create));
        self.description.add_stream::<CreateBackup>(POST.1, path, summary, backup::TAR);
        self
    }
}

const GET: (MethodFilter, HttpMethod) = (MethodFilter::GET, HttpMethod::Get);
const POST: (MethodFilter, HttpMethod) = (MethodFilter::POST, HttpMethod::Post);
const PUT: (MethodFilter, HttpMethod) = (MethodFilter::PUT, HttpMethod::Put);
const DELETE: (MethodFilter, HttpMethod) = (MethodFilter::DELETE, HttpMethod::Delete);

/// All routes of the API.
pub fn router(front: Front) -> Router {
    let routes = Routes { router: Router::new(), description: Description::new() };
    let routes = appliance(secrets(key_states(keys(routes))));
    // Written once: it is long, and anybody may ask for it.
    let document = serde_json::to_vec(&routes.description.finish()).unwrap_or_default();
    let document = Bytes::from(document);
    routes
        .router
        .route("/v1/health", get(health))
        .route(
            "/v1/openapi.json",
            get(
                async move |State(front): State<Front>,
                            Extension(guest): Extension<Guest>,
                            asked: http::Request<Body>| {
                    open(front, guest, asked, |_| Ok(text(JSON, document))).await
                },
            ),
        )
        .fallback(|Extension(guest): Extension<Guest>| async move {
            astray(guest, Problem::no_route()).await
        })
        .method_not_allowed_fallback(|Extension(guest): Extension<Guest>| async move {
            astray(guest, Problem::method_not_allowed()).await
        })
        .with_state(front)
}

fn keys(routes: Routes) -> Routes {
    routes
        .add::<CreateKey, true>(POST, "/v1/keys", "Generate a key")
        .add::<ListKeys, false>(GET, "/v1/keys", "List the keys")
        .add::<ShowKey, false>(GET, "/v1/keys/{key}", "Show a key")
        .add::<Destroy, false>(DELETE, "/v1/keys/{key}", "Destroy a key or a version, after a wait")
        .add::<ImportKey, true>(POST, "/v1/keys/{key}/import", "Import a private key")
        .add::<ShowPublic, false>(GET, "/v1/keys/{key}/public", "Fetch a public key")
        .add::<Jwks, false>(GET, "/v1/jwks.json", "Fetch current public keys as a JWK set")
        .add::<Encrypt, false>(POST, "/v1/keys/{key}/encrypt", "Encrypt with the current version")
        .add::<Decrypt, false>(
            POST,
            "/v1/keys/{key}/decrypt",
            "Decrypt one ciphertext, or up to 256",
        )
}

fn key_states(routes: Routes) -> Routes {
    routes
        .add::<UpdateKey, false>(
            POST,
            "/v1/keys/{key}/update",
            "Change what may be changed of a key",
        )
        .add::<Rotate, false>(POST, "/v1/keys/{key}/rotate", "Make a new version, active at once")
        .add::<Suspend, false>(POST, "/v1/keys/{key}/suspend", "Halt versions for the time being")
        .add::<Resume, false>(POST, "/v1/keys/{key}/resume", "Let suspended versions work again")
        .add::<Deactivate, false>(POST, "/v1/keys/{key}/deactivate", "End a cryptoperiod")
        .add::<Compromise, false>(POST, "/v1/keys/{key}/compromise", "Stop versions at once")
        .add::<Restore, false>(POST, "/v1/keys/{key}/restore", "Cancel a destruction that waits")
        .add::<TransferKey, false>(POST, "/v1/keys/{key}/transfer", "Give a key another owner")
}

fn secrets(routes: Routes) -> Routes {
    routes
        .add::<PutSecret, false>(PUT, "/v1/secrets/{name}", "Store a secret")
        .add::<ListSecrets, false>(GET, "/v1/secrets", "List the secrets, never a value")
        .add::<ShowSecret, false>(GET, "/v1/secrets/{name}", "Show what is known of a secret")
        .add::<RevealSecret, false>(POST, "/v1/secrets/{name}/reveal", "Open a secret")
        .add::<DeleteSecret, false>(DELETE, "/v1/secrets/{name}", "Delete a secret")
        .add::<TransferSecret, false>(
            POST,
            "/v1/secrets/{name}/transfer",
            "Give a secret another owner",
        )
}

fn appliance(routes: Routes) -> Routes {
    routes
        .add::<Init, true>(POST, "/v1/init", "Generate master key, signing key and store key")
        .add::<Status, false>(GET, "/v1/status", "Show how the appliance does")
        .add::<Doctor, false>(GET, "/v1/doctor", "Check everything that the work depends on")
        .add::<Lock, false>(POST, "/v1/lock", "Wipe all keys and refuse work until unlock")
        .add::<Unlock, false>(POST, "/v1/unlock", "Work again")
        .add::<RotateMaster, false>(POST, "/v1/master/rotate", "Begin to rotate the master key")
        .add::<ShowMaster, false>(GET, "/v1/master", "Show the master key's generations")
        .add::<RetireMaster, false>(
            POST,
            "/v1/master/retire",
            "Have a master key that nothing needs any more destroyed, after a wait",
        )
        .add::<CancelRetirement, false>(
            POST,
            "/v1/master/cancel-retirement",
            "Keep a master key that waits for its destruction",
        )
        .add::<ConfirmClock, false>(POST, "/v1/clock/confirm", "Say that the clock is right")
        .add::<ShowRecovery, false>(
            GET,
            "/v1/recovery",
            "Show what is recoverable without the token",
        )
        .add::<SetRecovery, false>(PUT, "/v1/recovery", "Wrap every key to a recovery key, too")
        .add::<ForgetRecovery, false>(DELETE, "/v1/recovery", "Take the recovery key away")
        .add_backup("/v1/backup", "Make a backup of store and trail, as a tar archive")
        .add::<ReadAudit, false>(GET, "/v1/audit", "Read lines of the trail")
        .add::<ReadPublicKey, false>(GET, "/v1/audit/public-key", "Fetch the trail's public key")
        .add::<ExplainPolicy, false>(
            POST,
            "/v1/policy/explain",
            "Say whether somebody may do something, and which policies say so",
        )
        .add::<ReadMetrics, false>(GET, "/metrics", "Read what is counted, as OpenMetrics")
}

/// Ready or not, and no more: it needs no permission. Whoever sends callers elsewhere goes by the status:
/// it is 200 for as long as keys and secrets open, if not all of them or nothing changes, and then says so.
async fn health(
    State(front): State<Front>,
    Extension(guest): Extension<Guest>,
    request: http::Request<Body>,
) -> Response {
    let reply = |appliance: &Appliance| {
        let mut body = serde_json::json!({ "ready": true });
        let changes_refused = !appliance.takes_changes();
        let (state, start_refused) =
            (appliance.state().0, !appliance.next_start_refused().is_empty());
        for (name, holds) in [
            ("degraded", state != "ready" || changes_refused || start_refused),
            ("brown_out", state == "brown-out"),
            ("changes_refused", changes_refused),
            ("next_start_refused", start_refused),
        ] {
            if holds {
                body[name] = true.into();
            }
        }
        match appliance.opens() {
            true => Ok(json(StatusCode::OK, &body)),
            false => Err(Problem::not_ready("not ready")),
        }
    };
    open(front, guest, request, reply).await
}
