//! The OpenAPI document, built from the routes themselves.

use utoipa::openapi::extensions::Extensions;
use utoipa::openapi::header::HeaderBuilder;
use utoipa::openapi::path::{
    OperationBuilder, ParameterBuilder, ParameterIn, PathItem, PathsBuilder,
};
use utoipa::openapi::response::ResponseBuilder;
use utoipa::openapi::schema::{ComponentsBuilder, ObjectBuilder, Ref, Type};
use utoipa::openapi::{
    ContentBuilder, Header, HttpMethod, InfoBuilder, OpenApi, OpenApiBuilder, RefOr, Required,
    Schema,
};
use utoipa::{PartialSchema, ToSchema};

use super::problem::Document;
use super::reply::{IntoReply, JSON};
use super::shape::FromWire;
use crate::policy::On;
use crate::service::Request;

/// What a name is, as a pattern of ECMA-262; the rule itself is `key::Name`'s.
const NAME: &str = "^[a-z0-9][a-z0-9._-]{0,62}$";

/// The document while routes are added.
pub struct Description {
    paths: PathsBuilder,
    components: ComponentsBuilder,
}

/// What every route can answer besides its success.
const PROBLEMS: [(&str, &str); 18] = [
    ("400", "malformed, invalid, invalid-cursor, invalid-name, unsupported-header, not-http"),
    ("403", "denied"),
    ("404", "not-found, no-such-version, no-route"),
    ("405", "method-not-allowed"),
    ("406", "not-acceptable, where there are several forms"),
    ("408", "body-too-slow, headers-too-slow"),
    (
        "409",
        "exists, conflict, key-state, already-initialised, not-locked, \
         rotation-running, rotated-recently, too-many-masters, master-needed, master-state, recovery-key, \
         custody-refused, clock-doubted",
    ),
    ("412", "revision-mismatch, precondition-failed"),
    ("413", "body-too-large"),
    ("414", "uri-too-long"),
    ("415", "not-json, content-encoding"),
    ("417", "expectation-failed"),
    ("422", "decryption-failed, plaintext-too-long, bad-key"),
    ("428", "precondition-required, where the configuration says so"),
    (
        "429",
        "too-many-requests, too-many-refusals, audit-budget, record-budget, rotated-often; with \
         Retry-After",
    ),
    ("431", "headers-too-large"),
    ("500", "internal, record-broken, outcome-unrecorded, outcome-unknown"),
    (
        "503",
        "busy, too-many-connections, locked, not-initialised, not-ready, pin-refused, pin-unavailable, master-key, token-unavailable, \
         trail-unavailable, store-edited, store-rolled-back, store-unavailable, store-full; with Retry-After",
    ),
];

impl Description {
    pub fn new() -> Self {
        let problem = (Document::name().into_owned(), Document::schema());
        let components = ComponentsBuilder::new().schemas_from_iter([problem]);
        Self { paths: PathsBuilder::new(), components }
    }

    /// Adds a route that performs `R`.
    pub fn add<R>(&mut self, method: HttpMethod, path: &'static str, summary: &str, created: bool)
    where
        R: FromWire,
        R::Reply: IntoReply,
    {
        let mut operation = OperationBuilder::new()
            .summary(Some(summary))
            .description(Some(permissions::<R>()))
            .extensions(Some(permissions_for_programs::<R>()));
        if let Some(name) = path.split(['{', '}']).nth(1) {
            let parameter = ParameterBuilder::new()
                .name(name)
                .parameter_in(ParameterIn::Path)
                .required(Required::True)
                .schema(Some(name_schema()))
                .build();
            operation = operation.parameter(parameter);
        }
        let components = std::mem::take(&mut self.components);
        let (operation, components) = R::describe(operation, components);
        let (operation, components) = replies::<R::Reply>(operation, components, created);
        self.components = components;
        let paths = std::mem::take(&mut self.paths);
        self.paths = paths.path(path, PathItem::new(method, operation.build()));
    }

    /// Adds a route that performs `R`, takes nothing, and answers with a stream of this type.
    pub fn add_stream<R: Request>(
        &mut self,
        method: HttpMethod,
        path: &'static str,
        summary: &str,
        media: &str,
    ) {
        let content = ContentBuilder::new().schema(Some(String::schema())).build();
        let done = answered("done; it is whole only if the body comes to its end");
        let operation = OperationBuilder::new()
            .summary(Some(summary))
            .description(Some(permissions::<R>()))
            .extensions(Some(permissions_for_programs::<R>()))
            .response("200", done.content(media, content).build());
        let item = PathItem::new(method, problems(operation).build());
        let paths = std::mem::take(&mut self.paths);
        self.paths = paths.path(path, item);
    }

    /// Adds a route that anybody may have: its success is a 200 with an object of JSON.
    fn add_open(&mut self, path: &'static str, summary: &str) {
        let object = ObjectBuilder::new().schema_type(Type::Object).build();
        let content = ContentBuilder::new().schema(Some(object)).build();
        let operation = OperationBuilder::new()
            .summary(Some(summary))
            .description(Some("Needs no permission."))
            .response("200", answered("done").content(JSON, content).build());
        let item = PathItem::new(HttpMethod::Get, problems(operation).build());
        let paths = std::mem::take(&mut self.paths);
        self.paths = paths.path(path, item);
    }

    /// The document, with the routes that every one needs to find it and its service.
    pub fn finish(mut self) -> OpenApi {
        self.add_open("/v1/health", "Say whether the appliance is ready: 200, or 503");
        self.add_open("/v1/openapi.json", "Fetch this document");
        let info = InfoBuilder::new()
            .title("Strongroom")
            .version(env!("CARGO_PKG_VERSION"))
            .description(Some(
                "Binary fields are base64: any alphabet and padding in, standard with padding out. \
                 Times are RFC 3339 in UTC. Errors are problem documents (RFC 9457) with a stable \
                 `code`. Names, bodies and queries that are not as described are refused, and so is \
                 a header that asks for what is not done: `range`, `prefer`, a content coding, a \
                 condition where there is no entity tag. A read under `if-none-match` is a 304 where \
                 the client has it already.",
            ))
            .build();
        OpenApiBuilder::new()
            .info(info)
            .paths(self.paths)
            .components(Some(self.components.build()))
            .build()
    }
}

/// The permissions that a route needs, in sentences.
fn permissions<R: Request>() -> String {
    let mut text = format!("Needs the permission `{}`", R::ACTION);
    for also in R::ACTION.also() {
        text += &format!(", and `{}`{}", also.action, place(also.on));
        if !also.when.as_str().is_empty() {
            text += &format!(" where {}", also.when.as_str());
        }
    }
    text + "."
}

/// The same for programs, as `x-strongroom-permissions`.
fn permissions_for_programs<R: Request>() -> Extensions {
    let mut all = vec![serde_json::json!({ "action": R::ACTION.as_str() })];
    all.extend(R::ACTION.also().iter().map(|also| {
        let mut one = serde_json::json!({ "action": also.action.as_str() });
        if also.on == On::TheKey {
            one["on"] = "the key of the secret".into();
        }
        if !also.when.as_str().is_empty() {
            one["when"] = also.when.as_str().into();
        }
        one
    }));
    Extensions::builder().add("x-strongroom-permissions", all).build()
}

fn place(on: On) -> &'static str {
    match on {
        On::Same => "",
        On::TheKey => " on the key that the secret is encrypted for",
    }
}

fn replies<T: IntoReply>(
    mut operation: OperationBuilder,
    components: ComponentsBuilder,
    created: bool,
) -> (OperationBuilder, ComponentsBuilder) {
    type Shown<T> = <T as IntoReply>::Shown;
    let outline = T::outline(created);
    let mut done = answered("done");
    for &media in outline.media {
        let schema: RefOr<Schema> = match media {
            JSON => Ref::from_schema_name(Shown::<T>::name()).into(),
            _ => String::schema(),
        };
        done = done.content(media, ContentBuilder::new().schema(Some(schema)).build());
    }
    if outline.tagged {
        done = done.header("etag", header("The revision, for if-match: \"3\"."));
    }
    let done = done.build();
    for &status in outline.statuses {
        operation = operation.response(status, done.clone());
    }
    let mut schemas: Vec<(String, RefOr<Schema>)> = Vec::new();
    if outline.media.contains(&JSON) {
        schemas.push((Shown::<T>::name().into_owned(), Shown::<T>::schema()));
        Shown::<T>::schemas(&mut schemas);
    }
    (problems(operation), components.schemas_from_iter(schemas))
}

/// Adds what can go wrong with every route.
fn problems(mut operation: OperationBuilder) -> OperationBuilder {
    for (status, codes) in PROBLEMS {
        let content =
            ContentBuilder::new().schema(Some(Ref::from_schema_name(Document::name()))).build();
        let mut response =
            answered(&format!("code: {codes}")).content("application/problem+json", content);
        if matches!(status, "429" | "503") {
            response = response.header("retry-after", header("Seconds."));
        }
        operation = operation.response(status, response.build());
    }
    operation
}

/// A response with the headers that every one has.
fn answered(description: &str) -> ResponseBuilder {
    ResponseBuilder::new()
        .description(description)
        .header("x-request-id", header("The same as in the trail and the journal."))
        .header("cache-control", header("Always no-store."))
}

fn header(description: &str) -> Header {
    HeaderBuilder::new().schema(String::schema()).description(Some(description)).build()
}

fn name_schema() -> RefOr<Schema> {
    ObjectBuilder::new().schema_type(Type::String).pattern(Some(NAME)).build().into()
}
