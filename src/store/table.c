/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The table of back ends and stages: what may stand in a spec, in the order in which it is listed
 * to people.
 *
 * It names functions of the layers above this one, by symbol and never by include, so that the
 * include direction holds; it is a file of its own, so that a test which defines its own
 * store_kinds[] links only what that names.
 */
#include "store/spec.h"

extern store_open_fn back_callbacks_open, back_directory_open, back_file_open, back_memory_open,
	back_pattern_open, back_remora_open;
extern store_open_fn stage_align_open, stage_checksum_open, stage_encrypt_open, stage_fault_open,
	stage_limit_open, stage_order_open, stage_powercut_open, stage_retry_open, stage_trace_open,
	stage_verify_open;

const struct store_kind store_kinds[] = {
	{ "file", true, "file:PATH[?direct=BOOL][&readonly=BOOL][&size=SIZE]", back_file_open },
	{ "directory", true, "directory:PATH[?size=SIZE][&chunk=SIZE][&create=BOOL][&readonly=BOOL]",
	  back_directory_open },
	{ "memory", true, "memory:SIZE", back_memory_open },
	{ "pattern", true, "pattern:SIZE[?unit=TEXT][&seed=N]", back_pattern_open },
	{ "remora", true, "remora://HOST:PORT[/NAME][?connections=N][&for=TIME][&connect=TIME][&readonly=BOOL]",
	  back_remora_open },
	{ "remoras", true,
	  "remoras://HOST:PORT[/NAME]?[ca=FILE][&cert=FILE][&key=FILE][&psk=FILE][&identity=NAME][&server=NAME]"
	  "[&connections=N][&for=TIME][&connect=TIME][&readonly=BOOL]",
	  back_remora_open },
	{ "remora+unix", true,
	  "remora+unix:///SOCKET[/NAME][?connections=N][&for=TIME][&connect=TIME][&readonly=BOOL]", back_remora_open },
	{ "remora+ssh", true,
	  "remora+ssh://[USER@]HOST[:PORT]/PATH[?command=COMMAND][&for=TIME][&connect=TIME][&readonly=BOOL]",
	  back_remora_open },
	{ "callbacks", true, "callbacks:", back_callbacks_open },

	{ "align", false, "align[:block=SIZE][,len=SIZE]", stage_align_open },
	{ "encrypt", false,
	  "encrypt:[key=FILE][,command=COMMAND][,env=NAME][,mode=MODE][,check=HEX][,meta=FILE][,new=BOOL][,chunk=SIZE]"
	  "[,sync=BOOL]",
	  stage_encrypt_open },
	{ "checksum", false, "checksum:file=PATH[,algorithm=NAME][,chunk=SIZE][,create=BOOL]", stage_checksum_open },
	{ "fault", false,
	  "fault[:seed=N][,error=N][,short=N][,hang=N][,delay=TIME][,read=BOOL][,write=BOOL][,flush=BOOL][,after=N]"
	  "[,times=N][,errno=NAME]",
	  stage_fault_open },
	{ "limit", false, "limit:[rate=RATE][,burst=SIZE][,iops=N][,inflight=SIZE]", stage_limit_open },
	{ "order", false, "order", stage_order_open },
	{ "powercut", false, "powercut[:after=N][,times=N][,seed=N][,keep=SIZE]", stage_powercut_open },
	{ "retry", false, "retry[:for=TIME][,delay=TIME][,max=TIME][,on=ERRORS]", stage_retry_open },
	{ "trace", false, "trace:file=PATH", stage_trace_open },
	{ "verify", false, "verify:with=(SPEC)", stage_verify_open },
	{ 0 },
};
