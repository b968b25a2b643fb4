//! How each request struct comes from path, query, headers and body; and what OpenAPI says of that.

use http::{HeaderMap, Uri};
use utoipa::openapi::path::{OperationBuilder, Parameter, ParameterBuilder, ParameterIn};
use utoipa::openapi::request_body::RequestBodyBuilder;
use utoipa::openapi::schema::{ComponentsBuilder, Ref};
use utoipa::openapi::{ContentBuilder, RefOr, Required, Schema};
use utoipa::{IntoParams, PartialSchema, ToSchema};

use super::problem::Problem;
use super::{body, meaning, query};
use crate::key::Name;
use crate::service::{
    CancelRetirement, ChangeBody, Compromise, ConfirmClock, CreateKey, Deactivate, DecryptBody,
    DeleteSecret, DestroyBody, Doctor, EncryptBody, ExplainPolicy, ForgetRecovery, ImportBody,
    Init, Jwks, JwksQuery, ListKeys, ListSecrets, Lock, Named, Page, Preconditions, PublicKeyQuery,
    PutBody, ReadAudit, ReadMetrics, ReadPublicKey, Request, Restore, Resume, RetireMaster,
    RevealSecret, Rotate, RotateMaster, SetRecovery, ShowKey, ShowMaster, ShowRecovery, ShowSecret,
    Status, Suspend, TransferBody, TransferKey, TransferSecret, Unlock, UpdateBody,
};

/// A request as it came in, within its limits, not parsed yet.
pub struct Incoming<'a> {
    pub uri: &'a Uri,
    pub headers: &'a HeaderMap,
    pub body: &'a [u8],
    pub depth: usize,
}

impl Incoming<'_> {
    /// The name in the path: its third segment, exactly as it was sent.
    fn name(&self) -> Result<Name, Problem> {
        let segment = self.uri.path().split('/').nth(3).unwrap_or_default();
        Name::parse(segment).map_err(|_| Problem::invalid_name())
    }

    fn body<T: serde::de::DeserializeOwned>(&self) -> Result<T, Problem> {
        body::parse(self.body, self.depth)
    }

    /// The query as its struct, whose own list of parameters says what it takes.
    fn query<T: serde::de::DeserializeOwned + IntoParams>(&self) -> Result<T, Problem> {
        axum::extract::Query::try_from_uri(self.uri)
            .map(|query| query.0)
            .map_err(|_| query::fault::<T>(self.uri))
    }

    /// For routes that take no body: one that is there is refused, not passed over.
    fn no_body(&self) -> Result<(), Problem> {
        let is_told = |byte: &&u8| !matches!(byte, b' ' | b'\t' | b'\r' | b'\n');
        // One byte more than is allowed is enough to tell.
        let told: Vec<u8> = self.body.iter().filter(is_told).take(3).copied().collect();
        if matches!(told.as_slice(), b"" | b"{}") {
            Ok(())
        } else {
            Err(Problem::malformed("this route takes no body"))
        }
    }

    /// For routes that take nothing at all, not even a condition.
    pub fn nothing_at_all(&self) -> Result<(), Problem> {
        meaning::no_preconditions(self.headers)?;
        self.nothing()
    }

    /// For routes that take nothing but what is in the path and in the conditions.
    fn nothing(&self) -> Result<(), Problem> {
        self.no_query()?;
        self.no_body()
    }

    /// For routes that take no query.
    fn no_query(&self) -> Result<(), Problem> {
        match self.uri.query() {
            None | Some("") => Ok(()),
            Some(_) => Err(Problem::malformed("this route takes no query")),
        }
    }

    /// The conditions in its headers.
    fn conditions(&self) -> Result<Preconditions, Problem> {
        meaning::preconditions(self.headers)
    }
}

/// A request struct that a route takes.
pub trait FromWire: Request {
    /// Whether its body may hold a secret. hyper keeps what it read last for as long as a connection
    /// is open, so a connection that brought one is closed after its answer.
    const SECRET: bool;
    /// Whether its resource has an entity tag that `if-match` and `if-none-match` are held against.
    const TAGGED: bool = false;

    fn from_wire(incoming: &Incoming<'_>) -> Result<Self, Problem>;

    /// Adds what this takes to the route's description.
    fn describe(
        operation: OperationBuilder,
        components: ComponentsBuilder,
    ) -> (OperationBuilder, ComponentsBuilder);
}

type Described = (OperationBuilder, ComponentsBuilder);

fn takes_body<B: ToSchema>(
    operation: OperationBuilder,
    components: ComponentsBuilder,
) -> Described {
    let mut schemas: Vec<(String, RefOr<Schema>)> = vec![(B::name().into_owned(), B::schema())];
    B::schemas(&mut schemas);
    let content = ContentBuilder::new().schema(Some(Ref::from_schema_name(B::name()))).build();
    let required = match B::schema() {
        RefOr::T(Schema::Object(object)) if object.required.is_empty() => Required::False,
        _ => Required::True,
    };
    let body = RequestBodyBuilder::new()
        .content("application/json", content)
        .required(Some(required))
        .build();
    (operation.request_body(Some(body)), components.schemas_from_iter(schemas))
}

fn takes_query<Q: IntoParams>(
    operation: OperationBuilder,
    components: ComponentsBuilder,
) -> Described {
    let parameters: Vec<Parameter> = Q::into_params(|| None);
    (operation.parameters(Some(parameters)), components)
}

/// One line per request struct: which shape it has.
macro_rules! shape {
    (@secret) => {
        false
    };
    (@secret secret) => {
        true
    };
    (nothing $request:ident) => {
        impl FromWire for $request {
            const SECRET: bool = false;
            fn from_wire(incoming: &Incoming<'_>) -> Result<Self, Problem> {
                incoming.nothing()?;
                Ok($request)
            }
            fn describe(operation: OperationBuilder, components: ComponentsBuilder) -> Described {
                (operation, components)
            }
        }
    };
    (body $request:ty $(, $secret:ident)?) => {
        impl FromWire for $request {
            const SECRET: bool = shape!(@secret $($secret)?);
            fn from_wire(incoming: &Incoming<'_>) -> Result<Self, Problem> {
                incoming.no_query()?;
                incoming.body()
            }
            fn describe(operation: OperationBuilder, components: ComponentsBuilder) -> Described {
                takes_body::<$request>(operation, components)
            }
        }
    };
    (query $request:ty) => {
        impl FromWire for $request {
            const SECRET: bool = false;
            fn from_wire(incoming: &Incoming<'_>) -> Result<Self, Problem> {
                incoming.no_body()?;
                incoming.query()
            }
            fn describe(operation: OperationBuilder, components: ComponentsBuilder) -> Described {
                takes_query::<$request>(operation, components)
            }
        }
    };
    (page $request:ident) => {
        impl FromWire for $request {
            const SECRET: bool = false;
            fn from_wire(incoming: &Incoming<'_>) -> Result<Self, Problem> {
                incoming.no_body()?;
                Ok($request(incoming.query()?))
            }
            fn describe(operation: OperationBuilder, components: ComponentsBuilder) -> Described {
                takes_query::<Page>(operation, components)
            }
        }
    };
    (name $request:ident) => {
        impl FromWire for $request {
            const SECRET: bool = false;
            fn from_wire(incoming: &Incoming<'_>) -> Result<Self, Problem> {
                incoming.nothing()?;
                Ok($request(incoming.name()?))
            }
            fn describe(operation: OperationBuilder, components: ComponentsBuilder) -> Described {
                (operation, components)
            }
        }
    };
    (named_tagged $request:ident) => {
        impl FromWire for $request {
            const SECRET: bool = false;
            const TAGGED: bool = true;
            fn from_wire(incoming: &Incoming<'_>) -> Result<Self, Problem> {
                incoming.nothing()?;
                Ok($request(incoming.name()?))
            }
            fn describe(operation: OperationBuilder, components: ComponentsBuilder) -> Described {
                (conditional(operation), components)
            }
        }
    };
    (named_query $request:ty = $query:ty) => {
        impl FromWire for $request {
            const SECRET: bool = false;
            fn from_wire(incoming: &Incoming<'_>) -> Result<Self, Problem> {
                incoming.no_body()?;
                let (name, with) = (incoming.name()?, incoming.query::<$query>()?);
                Ok(Named { name, with, conditions: Preconditions::default() })
            }
            fn describe(operation: OperationBuilder, components: ComponentsBuilder) -> Described {
                takes_query::<$query>(operation, components)
            }
        }
    };
    (named_body $request:ty = $body:ty $(, $secret:ident)?) => {
        impl FromWire for $request {
            const SECRET: bool = shape!(@secret $($secret)?);
            fn from_wire(incoming: &Incoming<'_>) -> Result<Self, Problem> {
                incoming.no_query()?;
                let (name, with) = (incoming.name()?, incoming.body::<$body>()?);
                Ok(Named { name, with, conditions: Preconditions::default() })
            }
            fn describe(operation: OperationBuilder, components: ComponentsBuilder) -> Described {
                takes_body::<$body>(operation, components)
            }
        }
    };
    (change $request:ty = $body:ty $(, $secret:ident)?) => {
        impl FromWire for $request {
            const SECRET: bool = shape!(@secret $($secret)?);
            const TAGGED: bool = true;
            fn from_wire(incoming: &Incoming<'_>) -> Result<Self, Problem> {
                incoming.no_query()?;
                let conditions = incoming.conditions()?;
                let (name, with) = (incoming.name()?, incoming.body::<$body>()?);
                Ok(Named { name, with, conditions }.into())
            }
            fn describe(operation: OperationBuilder, components: ComponentsBuilder) -> Described {
                takes_body::<$body>(conditional(operation), components)
            }
        }
    };
}

shape!(body Init);
shape!(nothing Status);
shape!(nothing Doctor);
shape!(body Lock);
shape!(body Unlock, secret);
shape!(body RotateMaster);
shape!(query ShowMaster);
shape!(body RetireMaster);
shape!(body CancelRetirement);
shape!(body ConfirmClock);
shape!(body CreateKey);
shape!(change Named<ImportBody> = ImportBody, secret);
shape!(page ListKeys);
shape!(named_tagged ShowKey);

impl FromWire for Jwks {
    const SECRET: bool = false;

    fn from_wire(incoming: &Incoming<'_>) -> Result<Self, Problem> {
        incoming.no_body()?;
        Ok(Jwks(incoming.query()?))
    }
    fn describe(operation: OperationBuilder, components: ComponentsBuilder) -> Described {
        takes_query::<JwksQuery>(operation, components)
    }
}

shape!(named_query Named<PublicKeyQuery> = PublicKeyQuery);
shape!(named_body Named<EncryptBody> = EncryptBody, secret);
shape!(named_body Named<DecryptBody> = DecryptBody);
shape!(change Named<UpdateBody> = UpdateBody);
shape!(change Rotate = ChangeBody);
shape!(change Suspend = ChangeBody);
shape!(change Resume = ChangeBody);
shape!(change Deactivate = ChangeBody);
shape!(change Compromise = ChangeBody);
shape!(change Restore = ChangeBody);
shape!(change TransferKey = TransferBody);
shape!(change TransferSecret = TransferBody);
shape!(change Named<DestroyBody> = DestroyBody);
shape!(page ListSecrets);
shape!(named_tagged ShowSecret);
shape!(name RevealSecret);
shape!(query ReadAudit);
shape!(body ExplainPolicy);
shape!(nothing ReadPublicKey);
shape!(nothing ReadMetrics);

shape!(change Named<PutBody> = PutBody, secret);

impl FromWire for ShowRecovery {
    const SECRET: bool = false;
    const TAGGED: bool = true;

    fn from_wire(incoming: &Incoming<'_>) -> Result<Self, Problem> {
        incoming.no_body()?;
        incoming.query()
    }
    fn describe(operation: OperationBuilder, components: ComponentsBuilder) -> Described {
        takes_query::<Self>(conditional(operation), components)
    }
}

impl FromWire for SetRecovery {
    const SECRET: bool = false;
    const TAGGED: bool = true;

    fn from_wire(incoming: &Incoming<'_>) -> Result<Self, Problem> {
        incoming.no_query()?;
        Ok(Self { conditions: incoming.conditions()?, ..incoming.body()? })
    }
    fn describe(operation: OperationBuilder, components: ComponentsBuilder) -> Described {
        takes_body::<Self>(conditional(operation), components)
    }
}

impl FromWire for ForgetRecovery {
    const SECRET: bool = false;
    const TAGGED: bool = true;

    fn from_wire(incoming: &Incoming<'_>) -> Result<Self, Problem> {
        incoming.nothing()?;
        Ok(Self { conditions: incoming.conditions()? })
    }
    fn describe(operation: OperationBuilder, components: ComponentsBuilder) -> Described {
        (conditional(operation), components)
    }
}

impl FromWire for DeleteSecret {
    const SECRET: bool = false;
    const TAGGED: bool = true;

    fn from_wire(incoming: &Incoming<'_>) -> Result<Self, Problem> {
        incoming.nothing()?;
        Ok(DeleteSecret { name: incoming.name()?, conditions: incoming.conditions()? })
    }
    fn describe(operation: OperationBuilder, components: ComponentsBuilder) -> Described {
        (conditional(operation), components)
    }
}

/// Adds the headers of preconditions to a route's description.
fn conditional(operation: OperationBuilder) -> OperationBuilder {
    let header = |name, meaning| {
        ParameterBuilder::new()
            .name(name)
            .parameter_in(ParameterIn::Header)
            .required(Required::False)
            .description(Some(meaning))
            .schema(Some(String::schema()))
            .build()
    };
    operation
        .parameter(header(
            "if-match",
            "The revision that it must have, as an entity tag: \"3\"; or *.",
        ))
        .parameter(header(
            "if-none-match",
            "`*`: only where it does not exist; or a revision that it must not have.",
        ))
}
