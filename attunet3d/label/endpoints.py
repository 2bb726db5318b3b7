"""MONAI Label's endpoints as ``attunet3d label`` serves them: those that viewers use, with checks of their arguments.

Not served are whole-slide images, upload of weights, the zip of all cases, and pages with third-party scripts.
"""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, FastAPI, HTTPException, Query, Request
from fastapi.responses import FileResponse, JSONResponse, RedirectResponse, Response
from monailabel.config import settings
from monailabel.datastore.local import LocalDatastore
from monailabel.endpoints import (
    activelearning,
    batch_infer,
    datastore,
    infer,
    info,
    login,
    logs,
    model,
    ohif,
    proxy,
    scoring,
    session,
    train,
)
from monailabel.interfaces.exception import ImageNotFoundException, LabelNotFoundException
from monailabel.interfaces.utils.app import app_instance
from monailabel.utils.others.generic import device_list
from starlette.datastructures import UploadFile

from attunet3d.config.files import BUNDLE
from attunet3d.errors import ConfigError
from attunet3d.label import checks, parameters

_ROUTERS = (activelearning, batch_infer, datastore, infer, info, model, ohif, scoring, session, train)
_CLOSED = {"GET /datastore/dataset", "PUT /model/{model}", "DELETE /model/{model}"}
_STRATEGIES = ("first", "random", "epistemic")
# Requests whose image need not exist yet.
_NEW_IMAGES = {"PUT /datastore/", "PUT /datastore/image"}
_SUFFIXES = {"PUT /session/": checks.SESSION_SUFFIXES, **dict.fromkeys(_NEW_IMAGES, checks.IMAGE_SUFFIXES)}

Endpoint = Callable[..., Awaitable[Any]]


def labelling_app(app: Path, dicomweb: bool) -> FastAPI:
    """Build an application with MONAI Label's endpoints.

    Args:
        app: folder of ``make_app``.
        dicomweb: whether the studies are on a DICOMweb server, which OHIF accesses through this one.
    """
    served = FastAPI(
        title="attunet3d label",
        openapi_url=None,
        lifespan=_lifespan,
        dependencies=[Depends(_known_queries)],
        exception_handlers={ImageNotFoundException: _not_found, LabelNotFoundException: _not_found},
    )
    allowed = _parameters(app / "model" / BUNDLE / "models")
    for module in (*_ROUTERS, proxy) if dicomweb else _ROUTERS:
        for route in module.router.routes:
            for method in route.methods:
                key = f"{method} {route.path}"
                if key not in _CLOSED:
                    endpoint = _checked(key, route.endpoint, allowed.get(key))
                    served.add_api_route(route.path, endpoint, methods=[method])

    if settings.MONAI_LABEL_AUTH_ENABLE:
        served.include_router(login.router)

    @served.get("/logs/")
    def log(lines: Annotated[int, Query(ge=1, le=100_000)] = 300) -> Response:
        text: Response = logs.get_logs(app / "logs" / "app.log", lines, html=False, text=True, refresh=0)
        return text

    @served.get("/")
    def start() -> RedirectResponse:
        return RedirectResponse("/ohif/" if dicomweb else "/info/")

    return served


@asynccontextmanager
async def _lifespan(_: FastAPI) -> AsyncIterator[None]:
    instance = app_instance()
    instance.server_mode(True)
    instance.on_init_complete()
    yield


def _parameters(models: Path) -> dict[str, parameters.Parameters]:
    devices = device_list()
    return {
        "POST /infer/{model}": parameters.inference(devices, models),
        "POST /batch/infer/{model}": parameters.batch(devices, models),
        "POST /train/": parameters.training(devices, models),
        "POST /train/{model}": parameters.training(devices, models),
        "POST /scoring/": parameters.scoring(devices),
        "POST /scoring/{method}": parameters.scoring(devices),
        "POST /activelearning/{strategy}": parameters.choosing(),
        "PUT /datastore/label": parameters.saving(),
    }


def _checked(key: str, endpoint: Endpoint, allowed: parameters.Parameters | None) -> Endpoint:
    @functools.wraps(endpoint)
    async def checked(**values: Any) -> Any:
        try:
            if key == "POST /infer/{model}":
                _check_source(values)
            for name, value in values.items():
                _check(key, name, value, allowed)
        except ConfigError as error:
            raise HTTPException(422, str(error)) from None
        answer = await endpoint(**values)
        if isinstance(answer, FileResponse) and not Path(answer.path).is_file():
            raise HTTPException(404, "no such file, or it is a folder")
        return answer

    return checked


def _check_source(values: dict[str, Any]) -> None:
    """Check the source of an inference: one image, and no scribbles."""
    if values["label"]:
        raise ConfigError("label: this network takes no scribbles; leave it out")
    if values["session_id"] or values["file"]:
        values["image"] = ""  # it is not used then, and 3D Slicer sends arbitrary text
    elif not values["image"]:
        raise ConfigError("image: missing; name one of the studies, or send a file")


def _check(key: str, name: str, value: Any, allowed: parameters.Parameters | None) -> None:
    """Check an argument of an endpoint; texts are names of things, except for the arguments listed here."""
    if isinstance(value, list):
        for item in value:
            _check(key, name, item, allowed)
    elif isinstance(value, UploadFile):
        value.filename = checks.check_file_name(value.filename or "", _SUFFIXES.get(key, checks.LABEL_SUFFIXES))
        checks.check_content(value.filename, value.file)
    elif name in ("params", "info"):
        given = parameters.parsed(name, value) if isinstance(value, str) else value or {}
        if allowed is None:
            parameters.check_information(name, given)
        else:
            parameters.check_parameters(name, given, allowed, BUNDLE if key.endswith("/") else "")  # for all models
    elif name == "path":
        (checks.check_dicomweb_path if "/proxy/" in key else checks.check_page)(value)
    elif name == "uncompress" and value:
        raise ConfigError("uncompress: archives are not unpacked here; upload the files themselves")
    elif name == "check_sum":
        checks.check_digest(value or "SHA256:0")
    elif isinstance(value, str) and value:
        checks.check_name(name, value)
        _find(key, name, value)


def _find(key: str, name: str, value: str) -> None:
    """Check that a name exists: MONAI Label fails otherwise, or takes it for a file in its working directory."""
    known = {"model": (BUNDLE,), "method": (BUNDLE,), "strategy": _STRATEGIES}.get(name, (value,))
    store = app_instance().datastore()
    if name == "image" and key not in _NEW_IMAGES:
        if type(store) is LocalDatastore:
            known = store.list_images()
        elif not checks.is_uid(value):
            known = ()
    if name == "session_id" and not app_instance().sessions().get_session(value, update_ts=False):
        known = ()
    if value not in known:
        raise HTTPException(404, f"no {name} {value!r}")


def _known_queries(request: Request) -> None:
    """Check that the endpoint knows all query parameters."""
    known = [parameter.alias for parameter in request.scope["route"].dependant.query_params]
    unknown = sorted(set(request.query_params) - set(known))
    if unknown and "path" not in request.path_params:  # a page of OHIF, or a query to the DICOMweb server
        raise HTTPException(422, f"unknown parameters {', '.join(unknown)}; known are {', '.join(known) or 'none'}")


async def _not_found(_: Request, error: Exception) -> Response:
    return JSONResponse({"detail": getattr(error, "msg", "not found")}, status_code=404)
