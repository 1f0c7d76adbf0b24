"""Pictures in a report: bounded in size and number; damaged files are left out."""

import base64
import io

import pytest
from PIL import Image
from support import reported
from support.reported import Tags, page_of

from flowopd_cli.reports import pictures, report, run_page


def test_a_page_stays_small_whatever_its_pictures_are(tmp_path):
    run = reported.begun(tmp_path / "t", reported.TEACHER)
    for iteration in range(1, 13):
        run.write_image(f"{iteration:06d}", reported.noise(8, 256, iteration))
    run.finish("done")
    page = report.of_run(run.path, None)
    assert 100_000 < page.stat().st_size < 5_000_000 < sum(file.stat().st_size for _, file in run.samples())
    labels = [text for text in Tags(page.read_text()).texts if text.startswith("iteration ")]
    assert (labels[0], labels[-1], len(labels)) == ("iteration 1", "iteration 12", pictures.MAX_ROWS)


def test_a_damaged_picture_is_left_out(tmp_path):
    run = reported.begun(tmp_path / "t", reported.TEACHER)
    run.samples_dir.mkdir(exist_ok=True)
    (run.samples_dir / "000001.png").write_bytes(b"\x89PNG\r\n\x1a\nrest")
    run.sample_prompts_file.write_text("[1, {]")
    run.finish("done")
    assert run_page.page(run, run.report_file).grids == ()


@pytest.mark.parametrize(("width", "height"), [(100, 20000), (20000, 1), (1, 20000)])
def test_a_picture_of_an_extreme_shape_is_made_small(tmp_path, width, height):
    run = reported.begun(tmp_path / "t", reported.TEACHER)
    run.write_image("000001", Image.new("RGB", (width, height)))
    run.finish("done")
    for image in page_of(run.path, tmp_path).all("img"):
        with Image.open(io.BytesIO(base64.b64decode(image["src"].partition(",")[2]))) as shown:
            assert (shown.width <= pictures.MAX_WIDTH, shown.height <= 4 * pictures.MAX_WIDTH) == (True, True)
