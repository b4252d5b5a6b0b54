# Makes the extension `_emu`, whose ops run the CUDA kernels and launchers on CPU tensors.
set(emulator ${CMAKE_CURRENT_SOURCE_DIR}/tests/cuda_emulator)
add_library(cuda_emulator OBJECT
  ${emulator}/cuda_emulator.cpp ${emulator}/context.cpp ${emulator}/fiber.cpp ${emulator}/shared_memory.cpp)
target_compile_options(cuda_emulator PRIVATE -O2 -g)  # never sanitized: see cuda_emulator.cpp

add_library(emulated_kernels OBJECT)
target_include_directories(emulated_kernels PRIVATE csrc ${emulator})
target_compile_definitions(emulated_kernels PRIVATE
  FUSEDLOSS_EMULATED FUSEDLOSS_SET=EMULATED FUSEDLOSS_REGISTER_BYTES=16)
target_compile_options(emulated_kernels PRIVATE -O1 -Wall -Wextra -Wno-unknown-pragmas)

function(emulated_file name text)
  set(path ${CMAKE_CURRENT_BINARY_DIR}/emulated/${name}.cpp)
  file(CONFIGURE OUTPUT ${path} CONTENT "${text}" @ONLY)
  target_sources(emulated_kernels PRIVATE ${path})
endfunction()

fusedloss_device_files(emulated_file 1)
if(FUSEDLOSS_SANITIZE)
  # Checks of undefined behaviour in its many kernels take the optimiser ten minutes.
  set_source_files_properties(${CMAKE_CURRENT_BINARY_DIR}/emulated/vectors/device.cpp PROPERTIES COMPILE_OPTIONS -O0)
endif()
