// Stands in for the toolkit's header: __dp4a is in ttsnn_kernel.h.
#pragma once
