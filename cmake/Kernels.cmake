# Object libraries fusedloss_kernels_SET, listed in kernel_targets, one for each instruction set: for each loss of
# csrc/FAMILY/losses.def a small file that instantiates the loss's kernels, and the engine of each family.
set(flags_DEFAULT -O3)
set(register_DEFAULT 16)
set(flags_AVX2 -O3 -mavx2 -mfma)
set(register_AVX2 32)
set(flags_AVX512 -O3 -mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma)
set(register_AVX512 64)
set(sets DEFAULT)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64|amd64")
  # Few processors need the first set then; it compiles in half the time and is at most a fifth slower.
  set(flags_DEFAULT -O2 $<$<CXX_COMPILER_ID:GNU>:-fpeel-loops;-fvect-cost-model=dynamic>)
  # (The emulated build is for tests of the CUDA kernels and computes nothing with these.)
  if(NOT FUSEDLOSS_EMULATED)
    list(APPEND sets AVX2 AVX512)
  endif()
endif()
set(FUSEDLOSS_SETS ${sets} CACHE STRING "instruction sets to build for, best last; at run time the best of the processor")
list(GET FUSEDLOSS_SETS 0 first_set)
foreach(set IN LISTS FUSEDLOSS_SETS)
  add_compile_definitions(FUSEDLOSS_HAS_${set})
endforeach()
list(JOIN FUSEDLOSS_SETS " " names)
add_compile_definitions(FUSEDLOSS_INSTRUCTION_SETS="${names}")

set(kernel_targets "")
foreach(set IN LISTS FUSEDLOSS_SETS)
  set(target fusedloss_kernels_${set})
  add_library(${target} OBJECT)
  list(APPEND kernel_targets ${target})
  target_compile_definitions(${target} PRIVATE FUSEDLOSS_SET=${set} FUSEDLOSS_REGISTER_BYTES=${register_${set}})
  # Comparisons that see a NaN set no flag that anybody reads, and no function sets errno: both only hinder vector code.
  target_compile_options(${target} PRIVATE ${flags_${set}} -fno-math-errno -fno-trapping-math)
  if(FUSEDLOSS_EMULATED)
    target_compile_options(${target} PRIVATE -O0)
  elseif(FUSEDLOSS_SANITIZE)
    target_compile_options(${target} PRIVATE -O1)
  endif()
  # A third of what a small file takes to compile is headers that all have. (Not with ccache: see CMakeLists.txt.)
  if(NOT CCACHE)
    target_precompile_headers(${target} PRIVATE csrc/pointwise/cpu.h csrc/rows/cpu.h)
  endif()
endforeach()

# Adds a file with the given text, compiled for one instruction set.
function(fusedloss_kernel_file name set text)
  set(path ${CMAKE_CURRENT_BINARY_DIR}/${name}.${set}.cpp)
  file(CONFIGURE OUTPUT ${path} CONTENT "${text}" @ONLY)
  target_sources(fusedloss_kernels_${set} PRIVATE ${path})
endfunction()

# Reads names and C++ types of a family's losses into FAMILY_losses and FAMILY_types, and adds its files.
macro(fusedloss_family family)
  set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS csrc/${family}/losses.def)
  file(STRINGS csrc/${family}/losses.def lines REGEX "^[A-Z]+_LOSS")
  foreach(line IN LISTS lines)
    string(REGEX MATCH "\\((.*), (.*)\\)" _ "${line}")
    list(APPEND ${family}_losses ${CMAKE_MATCH_1})
    list(APPEND ${family}_types ${CMAKE_MATCH_2})
  endforeach()
  foreach(set IN LISTS FUSEDLOSS_SETS)
    fusedloss_kernel_file(${family}/engine ${set}
      "#define FUSEDLOSS_ENGINE engine_${set}\n#include \"${family}/engine.cpp\"\n")
    foreach(loss type IN ZIP_LISTS ${family}_losses ${family}_types)
      set(about "")
      if(set STREQUAL first_set)
        set(about "extern const Description ${loss}_about;\nconst Description ${loss}_about = ${type}::about;\n")
      endif()
      fusedloss_kernel_file(${family}/${loss} ${set}
"#include \"${family}/cpu.h\"
#include \"${family}/losses/${loss}.h\"
namespace fusedloss::${family} {
${about}extern const TileFunctions ${loss}_${set};
const TileFunctions ${loss}_${set} = tile_functions<${type}>();
}  // namespace fusedloss::${family}
")
    endforeach()
  endforeach()
endmacro()

fusedloss_family(pointwise)
fusedloss_family(rows)

# These have their losses in their engines.
foreach(set IN LISTS FUSEDLOSS_SETS)
  foreach(family lattice pairs triplets vectors)
    fusedloss_kernel_file(${family}/engine ${set}
      "#define FUSEDLOSS_ENGINE engine_${set}\n#include \"${family}/engine.cpp\"\n")
  endforeach()
endforeach()
