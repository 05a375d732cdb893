# Sets `result` to the folder of TensorRT's headers, or to nothing: TENSORRT_ROOT's, where it is given, or those of the
# public repository (Apache-2.0), of which nothing else is fetched. The plugins link against no library of TensorRT.
function(q2export_tensorrt_headers result)
  set(${result} "" PARENT_SCOPE)
  if(TENSORRT_ROOT)
    if(NOT EXISTS "${TENSORRT_ROOT}/include/NvInferRuntime.h")
      message(FATAL_ERROR "TENSORRT_ROOT: ${TENSORRT_ROOT}/include/NvInferRuntime.h does not exist")
    endif()
    set(${result} "${TENSORRT_ROOT}/include" PARENT_SCOPE)
    return()
  endif()
  set(folder "${CMAKE_CURRENT_BINARY_DIR}/tensorrt-${Q2EXPORT_TENSORRT_VERSION}")
  if(NOT EXISTS "${folder}/include/NvInferRuntime.h")
    file(REMOVE_RECURSE "${folder}")
    find_package(Git QUIET)
    if(NOT Git_FOUND)
      message(STATUS "TensorRT headers: no git to fetch them with")
      return()
    endif()
    set(tag "v${Q2EXPORT_TENSORRT_VERSION}")
    message(STATUS "TensorRT headers: fetching include/ of ${Q2EXPORT_TENSORRT_REPOSITORY}, ${tag}")
    execute_process(
      COMMAND "${GIT_EXECUTABLE}" clone --quiet --depth 1 --filter=blob:none --sparse --branch "${tag}"
        "${Q2EXPORT_TENSORRT_REPOSITORY}" "${folder}"
      RESULT_VARIABLE status ERROR_VARIABLE problem)
    if(status EQUAL 0)
      execute_process(
        COMMAND "${GIT_EXECUTABLE}" -C "${folder}" sparse-checkout set include
        RESULT_VARIABLE status ERROR_VARIABLE problem)
    endif()
    if(NOT status EQUAL 0)
      message(STATUS "TensorRT headers: ${problem}")
      return()
    endif()
  endif()
  set(${result} "${folder}/include" PARENT_SCOPE)
endfunction()
