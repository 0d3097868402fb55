"""The cells of a DICOM slide as bulk annotations, and its index as a structured report (TID 1500)."""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute

from wsiscore import __version__
from wsiscore.errors import ExportError
from wsiscore.export.results import SlideResults

__all__ = ["write_dicom"]

_WHOLE_SLIDE = "1.2.840.10008.5.1.4.1.1.77.1.6"  # VL Whole Slide Microscopy Image Storage
_ANNOTATIONS, _REPORT = "annotations.dcm", "report.dcm"
_OWN = "99WSISCORE"  # our coding scheme, for what has no standard code
_MAKER = "wsiscore"


def write_dicom(path: Path, results: SlideResults) -> None:
    """Write ``annotations.dcm`` and ``report.dcm`` into a new folder, both of the study of the slide.

    The annotations are Microscopy Bulk Simple Annotations: points in pixels of the whole image, one group a class,
    with the optical density of DAB where it is known. The report is a Comprehensive 3D SR of TID 1500, neither
    complete nor verified, with the index and the counts.

    Raises
    ------
    ExportError
        If highdicom is not installed, or the slide is not a DICOM image whose full resolution is where it was.
    """
    try:
        highdicom = importlib.import_module("highdicom")
    except ImportError as error:
        raise ExportError("DICOM needs the package highdicom; pip install 'wsiscore[dicom]'") from error
    image = _image(results)
    path.mkdir()
    common = {"manufacturer": _MAKER, "series_number": 1, "instance_number": 1}
    machine = {"manufacturer_model_name": _MAKER, "software_versions": __version__, "device_serial_number": __version__}
    if groups := list(_groups(highdicom, results)):
        annotations = highdicom.ann.MicroscopyBulkSimpleAnnotations(
            source_images=[image],
            annotation_coordinate_type=highdicom.ann.AnnotationCoordinateTypeValues.SCOORD,
            annotation_groups=groups,
            series_instance_uid=highdicom.UID(),
            sop_instance_uid=highdicom.UID(),
            content_label="KI67_CELLS",
            content_description="Ki67 cells; research use only",
            series_description="Ki67 cells; research use only",
            **common,
            **machine,
        )
        annotations.save_as(path / _ANNOTATIONS)
    report = highdicom.sr.Comprehensive3DSR(
        evidence=[image],
        content=_content(highdicom, results, image),
        series_instance_uid=highdicom.UID(),
        sop_instance_uid=highdicom.UID(),
        is_complete=False,
        is_verified=False,
        series_description="Ki67 index; research use only",
        **common,
    )
    report.save_as(path / _REPORT)


def _image(results: SlideResults) -> Any:
    """Return the DICOM instance of the slide's full resolution, without its pixels."""
    pydicom = importlib.import_module("pydicom")
    slide = Path(str(results.run["slide"]["path"]))
    size = (results.run["slide"].get("width_px"), results.run["slide"].get("height_px"))

    def header(file: Path) -> Any:
        try:
            return pydicom.dcmread(file, stop_before_pixels=True)
        except (pydicom.errors.InvalidDicomError, OSError):
            return None

    own = header(slide) if slide.is_file() else None
    if own is None or own.get("SOPClassUID") != _WHOLE_SLIDE:
        raise ExportError(
            f"{slide} is no DICOM slide that is there, and DICOM results refer to one by its identifiers; "
            "export another format"
        )
    for file in (slide, *sorted(slide.parent.iterdir())):
        found = header(file) if file.is_file() else None
        if found is None or found.get("SeriesInstanceUID") != own.SeriesInstanceUID:
            continue
        if (found.get("TotalPixelMatrixColumns"), found.get("TotalPixelMatrixRows")) == size:
            return found
    raise ExportError(
        f"{slide.parent} holds no image of this series of {size[0]} × {size[1]} px; wanted the whole series"
    )


def _code(highdicom: Any, value: str, meaning: str, scheme: str = _OWN) -> Any:
    return highdicom.sr.CodedConcept(value=value, scheme_designator=scheme, meaning=meaning)


def _groups(highdicom: Any, results: SlideResults) -> Iterator[Any]:
    """Yield the annotations of each class that has cells."""
    table, model = results.cells, results.run["model"]
    edited = results.score.edits is not None
    kinds = highdicom.ann.AnnotationGroupGenerationTypeValues
    algorithm = highdicom.AlgorithmIdentificationSequence(
        name=results.score.model,
        version=str(model.get("version") or "1"),
        family=_code(highdicom, "123110", "Artificial Intelligence", "DCM"),
        parameters={"weights_sha256": str(model.get("weights_sha256") or "none")},
    )
    others = pyarrow.compute.equal(table["kind"], "other")
    classes = pyarrow.compute.if_else(others, "other", table["class"]).to_numpy(zero_copy_only=False)
    at = np.column_stack([table[name].to_numpy() / results.mpp for name in ("x_um", "y_um")])
    density = table["dab_od"].to_numpy()
    present = [name for name in ("positive", "negative", "other") if (classes == name).any()]
    for number, name in enumerate(present, start=1):
        of = classes == name
        measured = []
        if np.isfinite(density[of]).any():
            unit = _code(highdicom, "1", "no units", "UCUM")
            named = _code(highdicom, "dab_od", "Optical density of DAB")
            measured = [highdicom.ann.Measurements(named, density[of].astype(np.float32), unit)]
        yield highdicom.ann.AnnotationGroup(
            number=number,
            uid=highdicom.UID(),
            label=name.capitalize(),
            annotated_property_category=_code(highdicom, "91723000", "Anatomical structure", "SCT"),
            annotated_property_type=_code(highdicom, "84640000", "Nucleus", "SCT"),
            graphic_type=highdicom.ann.GraphicTypeValues.POINT,
            graphic_data=list(at[of].astype(np.float32)[:, None, :]),
            algorithm_type=kinds.SEMIAUTOMATIC if edited else kinds.AUTOMATIC,
            algorithm_identification=algorithm,
            measurements=measured or None,
        )


def _content(highdicom: Any, results: SlideResults, image: Any) -> Any:
    """Return the content of the report: who counted, on what, and the measurements."""
    sr, score = highdicom.sr, results.score
    device = sr.ObserverContext(
        observer_type=_code(highdicom, "121007", "Device", "DCM"),
        observer_identifying_attributes=sr.DeviceObserverIdentifyingAttributes(
            uid=highdicom.UID(), name=_MAKER, manufacturer_name=_MAKER, model_name=f"{_MAKER} {__version__}"
        ),
    )
    person = score.issue and sr.ObserverContext(
        observer_type=_code(highdicom, "121006", "Person", "DCM"),
        observer_identifying_attributes=sr.PersonObserverIdentifyingAttributes(name=score.issue.author),
    )
    group = sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(uid=highdicom.UID(), identifier=f"Ki67 index of {score.slide}"[:64]),
        finding_type=_code(highdicom, "84640000", "Nucleus", "SCT"),
        measurements=_measurements(highdicom, results),
        source_images=[sr.SourceImageForMeasurementGroup.from_source_image(image)],
    )
    return sr.MeasurementReport(
        observation_context=sr.ObservationContext(observer_person_context=person, observer_device_context=device),
        procedure_reported=_code(highdicom, "104157003", "Light microscopy procedure", "SCT"),
        imaging_measurements=[group],
    )


def _measurements(highdicom: Any, results: SlideResults) -> Sequence[Any]:
    total, sr = results.score.total, highdicom.sr
    cells = _code(highdicom, "{cells}", "cells", "UCUM")
    found = [
        sr.Measurement(_code(highdicom, "counted", "Counted cells"), total.n, cells),
        sr.Measurement(_code(highdicom, "positive", "Positive cells"), total.n_positive, cells),
    ]
    if math.isfinite(total.ki67_index) and results.score.call != "unsuitable":
        name = _code(highdicom, "29593-1", "Cells.Ki-67 nuclear Ag/cells in Tissue by Immune stain", "LN")
        percent = _code(highdicom, "%", "Percent", "UCUM")
        found.append(sr.Measurement(name, round(total.ki67_index, 1), percent))
    return found
