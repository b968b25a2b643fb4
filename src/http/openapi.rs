//! The OpenAPI document, built from the routes themselves.

use utoipa::openapi::path::{
    OperationBuilder, ParameterBuilder, ParameterIn, PathItem, PathsBuilder,
};
use utoipa::openapi::response::ResponseBuilder;
use utoipa::openapi::schema::{ComponentsBuilder, Ref};
use utoipa::openapi::{
    ContentBuilder, HttpMethod, InfoBuilder, OpenApi, OpenApiBuilder, RefOr, Required, Schema,
};
use utoipa::{PartialSchema, ToSchema};

use super::problem::Document;
use super::reply::{Empty, IntoReply};
use super::shape::FromWire;
use crate::service::Request;

/// The document while routes are added.
pub struct Description {
    paths: PathsBuilder,
    components: ComponentsBuilder,
}

/// What every route can answer besides its success.
const PROBLEMS: [(&str, &str); 9] = [
    ("400", "malformed, invalid, invalid-name"),
    ("403", "denied"),
    ("404", "not-found, no-such-version"),
    ("409", "exists, conflict, key-state, revision-mismatch, already-initialised, not-locked"),
    ("413", "body-too-large"),
    ("415", "not-json"),
    ("422", "decryption-failed, plaintext-too-long, bad-key"),
    ("500", "internal, record-broken"),
    (
        "503",
        "busy, locked, not-initialised, not-ready, pin-refused, master-key, token-unavailable, \
         trail-unavailable, store-unavailable; with Retry-After",
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
        let action = <R as Request>::ACTION.as_str();
        let mut operation = OperationBuilder::new()
            .summary(Some(summary))
            .description(Some(format!("Needs the permission `{action}`.")));
        if let Some(name) = path.split(['{', '}']).nth(1) {
            let parameter = ParameterBuilder::new()
                .name(name)
                .parameter_in(ParameterIn::Path)
                .required(Required::True)
                .schema(Some(String::schema()))
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

    pub fn finish(self) -> OpenApi {
        let info = InfoBuilder::new()
            .title("Strongroom")
            .version(env!("CARGO_PKG_VERSION"))
            .description(Some(
                "Binary fields are base64: any alphabet and padding in, standard with padding out. \
                 Times are RFC 3339 in UTC. Errors are problem documents (RFC 9457) with a stable \
                 `code`. GET /v1/health answers 200 or 503 and needs no permission.",
            ))
            .build();
        OpenApiBuilder::new()
            .info(info)
            .paths(self.paths)
            .components(Some(self.components.build()))
            .build()
    }
}

fn replies<T: IntoReply>(
    operation: OperationBuilder,
    components: ComponentsBuilder,
    created: bool,
) -> (OperationBuilder, ComponentsBuilder) {
    type Shown<T> = <T as IntoReply>::Shown;
    let mut schemas: Vec<(String, RefOr<Schema>)> =
        vec![(Shown::<T>::name().into_owned(), Shown::<T>::schema())];
    Shown::<T>::schemas(&mut schemas);
    let name = Shown::<T>::name();
    let mut done = ResponseBuilder::new().description("done");
    if name != Empty::name() {
        let content = ContentBuilder::new().schema(Some(Ref::from_schema_name(name))).build();
        done = done.content("application/json", content);
    }
    let mut operation = operation.response(if created { "201" } else { "200" }, done.build());
    for (status, codes) in PROBLEMS {
        let content =
            ContentBuilder::new().schema(Some(Ref::from_schema_name(Document::name()))).build();
        let response = ResponseBuilder::new()
            .description(format!("code: {codes}"))
            .content("application/problem+json", content)
            .build();
        operation = operation.response(status, response);
    }
    (operation, components.schemas_from_iter(schemas))
}
