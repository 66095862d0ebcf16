# A weak symbol compiled for one instruction set may be the copy that the linker keeps for all: there must be none.
execute_process(COMMAND nm -C ${OBJECTS} OUTPUT_VARIABLE symbols RESULT_VARIABLE failed)
string(REGEX MATCHALL "[^\n]* [WVu] [^\n]*" weak "${symbols}")
if(failed OR weak)
  message(FATAL_ERROR "weak symbols in ${NAME}: ${weak}")
endif()
