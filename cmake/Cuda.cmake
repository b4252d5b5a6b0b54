# List cuda_objects: the CUDA kernels, a file for every few losses, and what they share. Compiled by calling nvcc
# on files without torch in them; CMake's own CUDA support would ask for a whole toolkit, and wheels do not look like one.
#
# FUSEDLOSS_CUDA=AUTO builds them where nvcc is found: a toolkit of the system, or NVIDIA's wheels in this environment
# (nvidia-cuda-nvcc, nvidia-nvvm, nvidia-cuda-crt, nvidia-cuda-runtime, nvidia-cuda-cccl).
set(FUSEDLOSS_CUDA AUTO CACHE STRING "build CUDA kernels: AUTO, ON or OFF")
set(FUSEDLOSS_CUDA_ARCHITECTURES 80 90 100 CACHE STRING "for which architectures; the first one as PTX too")
set_property(CACHE FUSEDLOSS_CUDA PROPERTY STRINGS AUTO ON OFF)

set(FUSEDLOSS_HAS_CUDA OFF)
if(FUSEDLOSS_CUDA AND NOT FUSEDLOSS_EMULATED)
  execute_process(
    COMMAND ${Python_EXECUTABLE} -c
      "import sysconfig, glob; print(*sorted(glob.glob(sysconfig.get_path('purelib') + '/nvidia/c*/')), sep=';')"
    OUTPUT_VARIABLE wheels OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
  find_program(FUSEDLOSS_NVCC nvcc HINTS $ENV{CUDA_HOME} $ENV{CUDA_PATH} PATHS /usr/local/cuda ${wheels} PATH_SUFFIXES bin)
  if(FUSEDLOSS_NVCC)
    # nvcc may be a script that calls the one of a toolkit: it says itself where that is.
    execute_process(COMMAND ${FUSEDLOSS_NVCC} --dryrun -c -x cu /dev/null ERROR_VARIABLE plan OUTPUT_QUIET)
    string(REGEX MATCH "TOP=([^\n]*)" _ "${plan}")
    set(toolkit ${CMAKE_MATCH_1})
    find_library(FUSEDLOSS_CUDART cudart_static
      PATHS ${toolkit} ${wheels} PATH_SUFFIXES lib64 lib targets/x86_64-linux/lib NO_DEFAULT_PATH)
  endif()
  if(FUSEDLOSS_NVCC AND FUSEDLOSS_CUDART)
    set(FUSEDLOSS_HAS_CUDA ON)
  elseif(FUSEDLOSS_CUDA STREQUAL "AUTO")
    message(STATUS "CUDA: no nvcc with libcudart_static; building for the CPU only")
  else()
    message(FATAL_ERROR "FUSEDLOSS_CUDA=${FUSEDLOSS_CUDA}, but nvcc (${FUSEDLOSS_NVCC}) and libcudart_static "
      "(${FUSEDLOSS_CUDART}) were not both found: install a CUDA toolkit, or the wheels nvidia-cuda-nvcc, nvidia-nvvm, "
      "nvidia-cuda-crt, nvidia-cuda-runtime and nvidia-cuda-cccl into this environment")
  endif()
endif()

if(FUSEDLOSS_HAS_CUDA)
  # Divisions of floats within two units of the last place: exact ones call a slow path, whose registers made kernels spill.
  # (-O is of the host's code alone.)
  set(nvcc_flags -std=c++20 -prec-div=false -O1 -DNDEBUG --compress-mode=size
    -DFUSEDLOSS_SET=CUDA -DFUSEDLOSS_REGISTER_BYTES=16 -I${CMAKE_CURRENT_SOURCE_DIR}/csrc -Xcompiler=-fPIC,-fvisibility=hidden,-Wall,-Wextra)
  if(FUSEDLOSS_WERROR)
    list(APPEND nvcc_flags -Werror all-warnings -Xcompiler=-Werror)
  endif()
  # One PTX, that of the oldest, for all: there is nothing in the kernels that newer ones have more instructions for, and
  # the compiler's longer half, the way to PTX, is then gone once. Architectures not listed translate it when they load.
  list(GET FUSEDLOSS_CUDA_ARCHITECTURES 0 oldest)
  list(JOIN FUSEDLOSS_CUDA_ARCHITECTURES ",sm_" codes)
  list(APPEND nvcc_flags -gencode "arch=compute_${oldest},code=[sm_${codes},compute_${oldest}]")
  list(JOIN FUSEDLOSS_CUDA_ARCHITECTURES " sm_" FUSEDLOSS_CUDA_NAMES)
  set(FUSEDLOSS_CUDA_NAMES "sm_${FUSEDLOSS_CUDA_NAMES} compute_${oldest}")
  message(STATUS "CUDA: ${FUSEDLOSS_NVCC} for ${FUSEDLOSS_CUDA_NAMES}")
endif()

set(cuda_objects "")
# Adds a CUDA file with the given text.
function(fusedloss_cuda_file name text)
  set(path ${CMAKE_CURRENT_BINARY_DIR}/cuda/${name}.cu)
  file(CONFIGURE OUTPUT ${path} CONTENT "${text}" @ONLY)
  add_custom_command(OUTPUT ${path}.o
    COMMAND ${FUSEDLOSS_NVCC} ${nvcc_flags} -MD -MF ${path}.d -c ${path} -o ${path}.o
    DEPENDS ${path} DEPFILE ${path}.d COMMENT "Compiling CUDA kernels of ${name}" VERBATIM)
  set(cuda_objects ${cuda_objects} ${path}.o PARENT_SCOPE)
endfunction()

# The text of a CUDA file with some losses of a family; the emulator compiles the same.
function(fusedloss_device_text family losses types result)
  set(text "#include \"${family}/cuda.cuh\"\n")
  foreach(loss type IN ZIP_LISTS losses types)
    string(APPEND text
"#include \"${family}/losses/${loss}.h\"
namespace fusedloss::${family} {
extern const DeviceFunction ${loss}_device;
const DeviceFunction ${loss}_device = launch_loss<${type}>;
}  // namespace fusedloss::${family}
")
  endforeach()
  set(${result} "${text}" PARENT_SCOPE)
endfunction()

# Adds all CUDA files by add_file(name text): what all families share, and the losses of each, so many in a file.
macro(fusedloss_device_files add_file losses_in_file)
  cmake_language(CALL ${add_file} device "#include \"core/device.cuh\"\n")
  cmake_language(CALL ${add_file} lattice/device "#include \"lattice/cuda.cuh\"\n")
  cmake_language(CALL ${add_file} pairs/device "#include \"pairs/cuda.cuh\"\n")
  cmake_language(CALL ${add_file} rows/device "#include \"rows/device.cuh\"\n")
  cmake_language(CALL ${add_file} triplets/device "#include \"triplets/cuda.cuh\"\n")
  cmake_language(CALL ${add_file} vectors/device "#include \"vectors/cuda.cuh\"\n")
  foreach(family pointwise rows)
    list(LENGTH ${family}_losses count)
    math(EXPR last "${count} - 1")
    foreach(first RANGE 0 ${last} ${losses_in_file})
      list(SUBLIST ${family}_losses ${first} ${losses_in_file} losses)
      list(SUBLIST ${family}_types ${first} ${losses_in_file} types)
      list(GET losses 0 name)
      fusedloss_device_text(${family} "${losses}" "${types}" text)
      cmake_language(CALL ${add_file} ${family}/${name} "${text}")
    endforeach()
  endforeach()
endmacro()

if(FUSEDLOSS_HAS_CUDA)
  # Three: nvcc takes a second to begin with a file, and with more losses in it a change of one would be slow to build.
  fusedloss_device_files(fusedloss_cuda_file 3)
endif()
