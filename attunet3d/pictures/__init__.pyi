from .qc import qc_picture as qc_picture
