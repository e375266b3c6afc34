"""What the image libraries are told once in a process, before a program reads its first image."""

import os
import sys
import warnings


def prepare_image_libraries(max_image_pixels: int) -> None:
    """Keeps OpenCV from starting threads and printing, and lets Pillow open images of up to max_image_pixels.

    OpenCV takes what it is told from the environment when it is imported, later from its functions. Images are decoded
    on our own pool of threads, which fills the cores.
    """
    from PIL import Image

    # Pillow raises an error from twice this number on, and below it only warns.
    Image.MAX_IMAGE_PIXELS = -(-max_image_pixels // 2)
    warnings.filterwarnings("ignore", module="PIL")  # what it finds odd in a file; an error is raised all the same
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
    os.environ.setdefault("OPENCV_FOR_THREADS_NUM", "1")
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")  # the error says what cannot be read
    if cv2 := sys.modules.get("cv2"):
        cv2.setNumThreads(0)
        if hasattr(cv2, "setLogLevel"):
            cv2.setLogLevel(0)
