# Target fusedloss_torch: the headers and libraries of the installed torch wheel, asked from Python.
# find_package(Torch) would also set up the CUDA toolkit of the wheel, which this project finds for itself.
execute_process(
  COMMAND ${Python_EXECUTABLE} -c
    "import torch, os; print(os.path.dirname(torch.__file__), torch.__version__, int(torch._C._GLIBCXX_USE_CXX11_ABI), sep=';')"
  OUTPUT_VARIABLE found OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
list(GET found 0 TORCH_ROOT)
list(GET found 1 TORCH_VERSION)
list(GET found 2 TORCH_CXX11_ABI)
message(STATUS "torch ${TORCH_VERSION}")

add_library(fusedloss_torch INTERFACE)
target_include_directories(fusedloss_torch SYSTEM INTERFACE
  ${TORCH_ROOT}/include ${TORCH_ROOT}/include/torch/csrc/api/include)
target_compile_definitions(fusedloss_torch INTERFACE _GLIBCXX_USE_CXX11_ABI=${TORCH_CXX11_ABI})
foreach(name c10 torch_cpu torch torch_python)
  find_library(library_${name} ${name} PATHS ${TORCH_ROOT}/lib NO_DEFAULT_PATH REQUIRED)
  target_link_libraries(fusedloss_torch INTERFACE ${library_${name}})
endforeach()

# at::parallel_for is inlined into our code. It must run on the OpenMP library that torch brings: with a second one,
# torch.set_num_threads would not reach our loops and the two pools of threads would get in each other's way.
file(GLOB torch_openmp ${TORCH_ROOT}/lib/libgomp*.so* ${TORCH_ROOT}/lib/libomp*.dylib)
if(torch_openmp)
  list(GET torch_openmp 0 torch_openmp)
  if(CMAKE_CXX_COMPILER_ID MATCHES "AppleClang")
    target_compile_options(fusedloss_torch INTERFACE -Xpreprocessor -fopenmp)
  else()
    target_compile_options(fusedloss_torch INTERFACE -fopenmp)
  endif()
  target_link_libraries(fusedloss_torch INTERFACE ${torch_openmp})
else()
  find_package(OpenMP REQUIRED COMPONENTS CXX)
  target_link_libraries(fusedloss_torch INTERFACE OpenMP::OpenMP_CXX)
endif()

if(APPLE)
  set(CMAKE_INSTALL_RPATH "@loader_path/../torch/lib")
else()
  set(CMAKE_INSTALL_RPATH "$ORIGIN/../torch/lib")
endif()
set(CMAKE_BUILD_RPATH ${TORCH_ROOT}/lib)
