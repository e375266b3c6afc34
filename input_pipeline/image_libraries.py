"""The settings of the image libraries, made once in a process, before a program reads its first image."""

import os
import sys
import warnings


def prepare_image_libraries(max_image_pixels: int) -> None:
    """Keeps OpenCV from starting threads and printing, and lets Pillow open images of up to max_image_pixels.

    OpenCV needs no threads of its own, because our pool of decoding threads keeps all cores busy. It reads its settings
    from the environment when it is imported; afterwards they are set by its functions.
    """
    from PIL import Image

    # Pillow raises an error only for images of more than twice this number of pixels, and warns below that.
    Image.MAX_IMAGE_PIXELS = -(-max_image_pixels // 2)
    # Pillow warns about odd files; for a file that it cannot read it raises an error in any case.
    warnings.filterwarnings("ignore", module="PIL")
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
    os.environ.setdefault("OPENCV_FOR_THREADS_NUM", "1")
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")  # our own error names the file that cannot be read
    if cv2 := sys.modules.get("cv2"):
        cv2.setNumThreads(0)
        if hasattr(cv2, "setLogLevel"):
            cv2.setLogLevel(0)
