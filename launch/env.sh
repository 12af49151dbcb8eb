# Environment variables of a training process. Source it: source launch/env.sh cpu|gpu|tpu
# What is set already stays, so any of them can be changed from outside. `environment` lists the names, for --dry-run.

platform=${1:?say which platform: source launch/env.sh cpu, gpu or tpu}
environment=(GLIBC_TUNABLES PYTHONUNBUFFERED)

# Huge pages for the large arrays of the host: fewer page faults in decoding, batches and, on CPU, the step itself.
export GLIBC_TUNABLES=${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}
# A process that jax aborts, since another one died, still shows its last lines.
export PYTHONUNBUFFERED=${PYTHONUNBUFFERED:-1}

case $platform in
  cpu)
    # Not the accelerator that may be there too.
    export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu}
    environment+=(JAX_PLATFORMS)
    ;;
  gpu)
    # Without this jax falls back to the CPU, with a warning, where the driver or its plugin is broken.
    export JAX_PLATFORMS=${JAX_PLATFORMS:-cuda}
    # Share of the memory that jax takes at start (0.75 by default); the rest is for NCCL and cuDNN. NVIDIA's page of
    # flags for JAX (docs.nvidia.com/jax-toolbox, "GPU Performance") takes 0.9 or 0.8.
    export XLA_PYTHON_CLIENT_MEM_FRACTION=${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.9}
    # Lets the gathering of embeddings and gradients run beside the computation: the one flag that both jax's "GPU
    # performance tips" and NVIDIA's image of JAX set (known to jaxlib 0.10.2 and 0.12.0.1). The tips' other one,
    # --xla_gpu_triton_gemm_any=true, has more kernels tried for each product: `benchmark --mode=device` measures a step
    # with it, and until a GPU has shown a gain it stays out. Layouts need none: models are NHWC, cuDNN's own in bfloat16.
    export XLA_FLAGS=${XLA_FLAGS:---xla_gpu_enable_latency_hiding_scheduler=true}
    environment+=(JAX_PLATFORMS XLA_PYTHON_CLIENT_MEM_FRACTION XLA_FLAGS)
    ;;
  tpu)
    export JAX_PLATFORMS=${JAX_PLATFORMS:-tpu}
    # Options of the TPU's compiler; none are needed. Try them with the `compile` command before a pod runs with them.
    export LIBTPU_INIT_ARGS=${LIBTPU_INIT_ARGS:-}
    # Ask the cluster's metadata how many hosts there are and which one this is.
    export JAX_NUM_PROCESSES=${JAX_NUM_PROCESSES:-auto}
    environment+=(JAX_PLATFORMS LIBTPU_INIT_ARGS JAX_NUM_PROCESSES)
    ;;
  *)
    echo "launch/env.sh: there is no platform $platform; known: cpu, gpu, tpu" >&2
    return 2
    ;;
esac
