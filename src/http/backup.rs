//! The one answer that is a stream: a backup.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Extension, State};
use axum::response::Response;
use bytes::Bytes;
use futures_util::stream::try_unfold;
use http::header::{CONTENT_TYPE, HeaderValue};
use tokio::sync::mpsc::Receiver;
use tokio::task::JoinHandle;

use super::perform::{Front, Guest, NothingToForget, take};
use super::problem::Problem;
use super::share::GoesOn;
use crate::service::{BackupMade, CreateBackup, Error};

/// What a backup is as a media type.
pub const TAR: &str = "application/x-tar";

/// Handles the route. What goes wrong before the first piece is a problem document; after it the
/// connection ends without the end of the body.
pub async fn create(
    State(front): State<Front>,
    Extension(guest): Extension<Guest>,
    request: http::Request<Body>,
) -> Response {
    let request_id = guest.call.request_id;
    let started = async {
        let (_nothing, _room) =
            take(&front, &guest.place, request, |incoming| incoming.nothing_at_all()).await?;
        begin(&front, guest).await
    };
    let mut response = started.await.unwrap_or_else(|problem| problem.reply(request_id));
    response.extensions_mut().insert(NothingToForget);
    response
}

async fn begin(front: &Front, guest: Guest) -> Result<Response, Problem> {
    let turn = guest.place.turn(front.appliance.custody_is_away()).await?;
    let busy = guest.place.goes_on();
    let (asked, mut pieces) = CreateBackup::new();
    let appliance = Arc::clone(&front.appliance);
    // In a task of its own, as every request is; it ends by itself when nobody takes the pieces.
    let making = tokio::spawn(async move {
        let made = appliance.perform(guest.call, asked).await;
        drop(turn);
        made
    });
    let Some(first) = pieces.recv().await else {
        let made = making.await.unwrap_or(Err(Error::Abandoned));
        return Err(Problem::from(&made.err().unwrap_or(Error::Abandoned)));
    };
    let under_way = UnderWay { pieces, held: Some(first), making, _busy: busy };
    let mut response = Response::new(Body::from_stream(try_unfold(under_way, UnderWay::next)));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(TAR));
    Ok(response)
}

/// A backup that is being handed out, one piece behind: the last one leaves when its outcome has a line.
struct UnderWay {
    pieces: Receiver<Bytes>,
    held: Option<Bytes>,
    making: JoinHandle<Result<BackupMade, Error>>,
    _busy: GoesOn,
}

impl UnderWay {
    async fn next(mut self) -> Result<Option<(Bytes, Self)>, Error> {
        let Some(held) = self.held.take() else { return Ok(None) };
        self.held = self.pieces.recv().await;
        if self.held.is_none() {
            (&mut self.making).await.unwrap_or(Err(Error::Abandoned))?;
        }
        Ok(Some((held, self)))
    }
}
